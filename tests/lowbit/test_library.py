"""Building, finding and doing without the compiled ops."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tfquant.lowbit import build, library

ROOT = pathlib.Path(__file__).resolve().parents[2]

FALLBACK = """
import sys, warnings
import numpy as np, tensorflow as tf
from tfquant import lowbit
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    w = lowbit.pack(np.ones((40, 3)), np.full((2, 3), 0.5), num_bits=4, group_size=32)
    x = tf.Variable(np.full((2, 2, 40), 2.0), dtype=tf.float32)
    with tf.GradientTape() as tape:
        y = tf.function(lambda: lowbit.matmul(x, w, bias=tf.ones(3), fused="relu"))()
    assert y.shape == (2, 2, 3) and np.allclose(y, 41), y
    assert np.allclose(tape.gradient(y, x), 1.5)
    packed = lowbit.quantize_pack(tf.ones((2, 3)), np.ones((2, 1)), num_bits=4, column_group=3)
    real = lowbit.dequantize(packed, np.ones((2, 1)), num_bits=4, columns=3, column_group=3)
    assert np.allclose(real, 1), real
    try:
        lowbit.matmul(tf.ones((1, 41)), w)
    except ValueError as error:
        assert "depth=40" in str(error)
    else:
        raise AssertionError("a wrong depth was accepted")
ours = [w for w in seen if issubclass(w.category, lowbit.FallbackWarning)]
assert len(ours) == 1, ours
report = lowbit.doctor()
assert not report.built and report.path == "reference"
print(report.problem, "|", report.remedy)
"""


def run(code, **environment):
    keep = {k: v for k, v in os.environ.items() if k not in ("TFQUANT_BUILD", "TFQUANT_PATH")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=keep | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "problem", "remedy"),
    [
        ({"TFQUANT_BUILD": "0"}, "TFQUANT_BUILD=0 forbids it", "Unset TFQUANT_BUILD"),
        ({"PATH": "/nowhere", "CXX": ""}, "There is no C++ compiler", "Install g++"),
        ({"CXX": "false"}, "The compiler failed", "supports"),
    ],
)
def test_without_the_library_the_reference_works_after_one_warning(
    tmp_path, environment, problem, remedy
):
    alone = {"TFQUANT_CACHE_DIR": str(tmp_path), "TFQUANT_PACKAGED": "0"}
    done = run(FALLBACK, **alone, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert problem in done.stdout and remedy in done.stdout


def test_a_library_with_another_stamp_is_not_used(tmp_path):
    wanted = {"tensorflow": "2", "compiler": "c", "sources": "s"}
    (tmp_path / build.LIBRARY).write_bytes(b"")
    assert not library._fits(tmp_path, wanted, wanted)
    (tmp_path / build.STAMP).write_text(json.dumps(wanted))
    assert library._fits(tmp_path, wanted, wanted)
    assert not library._fits(tmp_path, wanted | {"tensorflow": "3"}, wanted)
    (tmp_path / build.STAMP).write_text("{truncated")
    assert not library._fits(tmp_path, wanted, wanted)


@pytest.mark.parametrize("setting", [None, "1", "0"])
def test_a_packaged_library_is_used_unless_it_is_forbidden(tmp_path, monkeypatch, setting):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    monkeypatch.setenv("TFQUANT_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.delenv("TFQUANT_PACKAGED", raising=False)
    if setting is not None:
        monkeypatch.setenv("TFQUANT_PACKAGED", setting)
    wanted = {"tensorflow": "2", "compiler": "c", "sources": "s"}
    packaged = tmp_path / "_lib"
    packaged.mkdir()
    (packaged / build.LIBRARY).write_bytes(b"")
    (packaged / build.STAMP).write_text(json.dumps(wanted | {"compiler": "another"}))
    expected = None if setting == "0" else packaged / build.LIBRARY
    assert library._find(wanted) == expected


def test_each_stamp_has_its_own_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TFQUANT_CACHE_DIR", str(tmp_path))
    first, second = (library.cache_folder({"sources": s}) for s in "ab")
    assert first != second and first.parent == second.parent == tmp_path


def test_python_knows_every_path_that_the_sources_list(core, listed_paths):
    """One for another processor is listed too, and not supported here."""
    listed = library.path_names(library.c_library())
    assert listed == listed_paths
    assert {"portable", "avx2", "amx", "neon"} <= set(listed)
    assert set(core.paths()) < set(listed)


def test_the_doctor_names_the_last_path_too(core, monkeypatch):
    """On an ARM processor the last one, neon, is the only one but the portable path."""
    real = library.c_library()

    class OnArm:
        tfquant_cuda_describe = real.tfquant_cuda_describe
        tfquant_path_name = real.tfquant_path_name

        def tfquant_path_supported(self, index):
            return self.tfquant_path_name(index) in (b"portable", b"neon")

        def tfquant_chosen_path(self):
            return b"neon"

    monkeypatch.setattr(library, "c_library", OnArm)
    assert library.doctor().supported_paths == ("portable", "neon")


def test_the_source_list_names_every_source_and_no_other():
    lists = build.source_lists()
    listed = {*lists["CORE_SOURCES"], *lists["TENSORFLOW_SOURCES"]}
    paths = {*lists["X86_64_PATHS"], *lists["AARCH64_PATHS"]}
    listed |= {build.path_source(name) for name in paths}
    root = build.source_root()
    found = {str(path.relative_to(root)) for path in build.source_files() if path.suffix == ".cc"}
    assert listed == found
    assert set(lists["GPU_SOURCES"]) < set(lists["CORE_SOURCES"])
    apart = {*lists["NVCC_SOURCES"], *lists["EMULATED_SOURCES"], *lists["GPU_TEST_SOURCES"]}
    assert {str(path.relative_to(root)) for path in root.rglob("*.cu")} < apart
    assert all((root / name).is_file() for name in apart)


def test_bazel_reads_the_same_source_list():
    text = (ROOT / "BUILD").read_text()
    loaded = re.search(r'load\(\s*"//:custom_ops/sources.bzl",(.*?)\)', text, re.DOTALL).group(1)
    assert set(re.findall(r'"(\w+)"', loaded)) == set(build.source_lists())
    for name in build.source_lists():
        assert text.count(name) >= 2, f"BUILD loads {name} and does not use it"
    assert not re.search(r'"[\w/]+\.cc"', text), "BUILD names a source by itself"


def test_nvrtc_reads_the_parts_that_other_compilers_include():
    cuda = build.source_root() / "core" / "cuda"
    included = re.findall(r'^#include "(.*)"', (cuda / "kernels.cuh").read_text(), re.MULTILINE)
    text = re.findall(r'TFQUANT_TEXT\("(.*)"\)', (cuda / "nvrtc_launch.cc").read_text())
    assert text == ["../settings.h", "arguments.h", "intrinsics.cuh", *included]
    assert set(included) == {f"parts/{path.name}" for path in (cuda / "parts").iterdir()}


@pytest.mark.parametrize(
    ("machine", "has", "lacks"), [("x86_64", "avx512", "neon"), ("aarch64", "neon", "avx2")]
)
def test_commands_fit_the_processor(tmp_path, machine, has, lacks):
    calls, link = build.commands(tmp_path / "x.so", tmp_path, machine=machine)
    text = " ".join(" ".join(call) for call in calls)
    assert build.path_source(has) in text and build.path_source(lacks) not in text
    assert "tensorflow" not in " ".join(link)


def test_the_compiler_s_words_reach_the_user(tmp_path, monkeypatch):
    if build.compiler() is None:
        pytest.skip("needs a C++ compiler")
    with pytest.raises(build.BuildError, match=r"The compiler failed: .*--no-such-option"):
        build.compile_library(tmp_path / "x.so", copts=["--no-such-option"])
    assert not list(tmp_path.iterdir())


def test_the_build_command_needs_neither_tfquant_nor_tensorflow():
    code = (
        "import sys, importlib.util;"
        "s = importlib.util.spec_from_file_location('b', 'custom_ops/build_ext.py');"
        "m = importlib.util.module_from_spec(s); s.loader.exec_module(m);"
        "m._load_build().source_files();"
        "assert not {'tfquant', 'tensorflow'} & set(sys.modules)"
    )
    if importlib.util.find_spec("setuptools.command.bdist_wheel") is None:
        pytest.skip("needs setuptools >= 77")
    done = run(code)
    assert done.returncode == 0, done.stderr
