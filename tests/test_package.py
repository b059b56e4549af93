"""What is handed out: a source archive that builds, and a wheel that says what it is."""

import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata

import pytest
import tomllib

import tfquant as tfq
from tfquant.lowbit import build

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = "custom_ops", "docs", "tests/cli", "tfquant"
LEFT = shutil.ignore_patterns("__pycache__", "*.so", "built.json", "*.egg-info")


def setuptools_builds():
    """Whether this environment's setuptools reads our pyproject.toml."""
    try:
        return int(metadata.version("setuptools").split(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


needs_setuptools = pytest.mark.skipif(not setuptools_builds(), reason="needs setuptools >= 77")


def made(kind, folder, out, **environment):
    """Calls the build backend in `folder` as pip does, which writes a file to `out`."""
    out.mkdir()
    code = f"from setuptools import build_meta as b; b.build_{kind}({str(out)!r})"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The content of the source archive of a checkout that holds nothing but its files."""
    folder = tmp_path_factory.mktemp("package")
    checkout = folder / "checkout"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, checkout / name, ignore=LEFT)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, checkout)
    archive = made("sdist", checkout, folder / "sdist")
    assert archive.name == f"tfquant-{tfq.__version__}.tar.gz"
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    return folder / f"tfquant-{tfq.__version__}"


@needs_setuptools
def test_a_source_archive_makes_a_wheel_for_any_platform_with_the_sources_inside(
    unpacked, tmp_path
):
    assert not (unpacked / "tests").exists()
    wheel = made("wheel", unpacked, tmp_path / "wheel", TFQUANT_BUILD="0")
    assert wheel.name == f"tfquant-{tfq.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    root = build.source_root()
    sources = {
        f"tfquant/lowbit/custom_ops/{path.relative_to(root)}" for path in build.source_files()
    }
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tfquant").rglob("*.py")
        if "custom_ops" not in path.parts
    }
    assert {"tfquant/py.typed", "tfquant_cli.py"} | sources | modules <= names
    folders = {name.split("/")[0] for name in names}
    assert folders == {"tfquant", "tfquant_cli.py", f"tfquant-{tfq.__version__}.dist-info"}


@needs_setuptools
def test_a_wheel_with_a_library_names_its_platform(unpacked, tmp_path):
    compiler = tmp_path / "compiler"  # Writes what it is asked for; what is in there is no matter.
    compiler.write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && : >"$2"; shift; done\n')
    compiler.chmod(0o755)
    (tmp_path / "tensorflow" / "include" / "tensorflow").mkdir(parents=True)
    settings = {"CXX": str(compiler), "TFQUANT_TENSORFLOW_DIR": str(tmp_path / "tensorflow")}
    wheel = made("wheel", unpacked, tmp_path / "wheel", **settings)
    assert wheel.name.startswith(f"tfquant-{tfq.__version__}-py3-none-linux_")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"tfquant/lowbit/_lib/libtfquant_ops.so", "tfquant/lowbit/_lib/built.json"} <= {*names}
    # In the same folder, without a compiler, nothing of that is left.
    wheel = made("wheel", unpacked, tmp_path / "plain", TFQUANT_BUILD="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    where = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    module, _, name = where.rpartition(".")
    assert getattr(importlib.import_module(module), name) == tfq.__version__


def test_the_package_runs_as_a_module():
    call = [sys.executable, "-m", "tfquant", "--version"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"tfquant {tfq.__version__}\n")


@pytest.mark.parametrize("backend", ["jax", "numpy", "torch", "openvino"])
def test_another_backend_is_refused_at_import(backend):
    done = imported("import tfquant", KERAS_BACKEND=backend)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: tfquant needs Keras on TensorFlow: set KERAS_BACKEND=")
    assert last.endswith(f"Received: backend '{backend}'")
    in_shell = "import sys, tfquant_cli; sys.exit(tfquant_cli.main(['doctor']))"
    done = imported(in_shell, KERAS_BACKEND=backend)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"Received: backend '{backend}'\n")


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_the_settings_of_keras_count_too(tmp_path, backend):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": backend}))
    done = imported("import tfquant", KERAS_HOME=str(tmp_path), KERAS_BACKEND="")
    received = rf"backend '{backend}'|a backend that needs .*"  # Its library may be missing.
    words = f"ImportError: tfquant needs .* Received: ({received})"
    assert re.fullmatch(words, done.stderr.splitlines()[-1])


def test_importing_leaves_out_what_only_a_conversion_needs():
    done = imported("import sys, tfquant; sys.exit('ai_edge_quantizer' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_importing_writes_nothing_to_the_shell_s_output():
    done = imported("import tfquant", KERAS_BACKEND="tensorflow")
    assert (done.returncode, done.stdout) == (0, "")


def imported(code, **environment):
    """Runs `code` in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
