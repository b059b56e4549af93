"""Compiles custom_ops: what to compile, where TensorFlow is, and the calls of the compiler.

Imports the standard library only, and TensorFlow never: the build command of `pip install` loads
this file by its path, where neither tfquant nor TensorFlow can be imported.
"""

import ast
import concurrent.futures
import hashlib
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sysconfig
import tempfile

LIBRARY = "libtfquant_ops.so"
STAMP = "built.json"
_SUFFIXES = (".cc", ".cu", ".cuh", ".h", ".bzl")


class BuildError(RuntimeError):
    """There is no compiler, no source, or the compiler failed; the message says which."""


def source_root():
    """Folder of the C++ sources: inside an installed package, or of the checkout around it."""
    here = pathlib.Path(__file__).resolve().parent
    for folder in (here / "custom_ops", here.parents[1] / "custom_ops"):
        if (folder / "sources.bzl").is_file():
            return folder
    raise BuildError(f"The C++ sources of tfquant are missing. Expected: {here / 'custom_ops'}.")


def source_lists(root=None):
    """The assignments of `sources.bzl`, as a dictionary."""
    text = (pathlib.Path(root or source_root()) / "sources.bzl").read_text()
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
    }


def source_files(root=None):
    """Every file that a build reads, sorted."""
    root = pathlib.Path(root or source_root())
    folders = [root / name for name in ("core", "kernels", "ops")]
    found = [path for f in folders for path in f.rglob("*") if path.suffix in _SUFFIXES]
    found += root.glob("core/cuda/checked.md")  # what a GPU host found; see gpu_check.py
    return sorted([*found, root / "sources.bzl"])


def source_hash(root=None):
    """A short hash of the sources."""
    digest = hashlib.sha256()
    for path in source_files(root):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def tensorflow_folder():
    """TensorFlow's folder, found without importing it; `None` where there is none.

    Looks at the environment variable `TFQUANT_TENSORFLOW_DIR`, at what can be imported, and (under
    pip's build isolation) at the site-packages of the environment that runs pip.
    """
    folders = [os.environ.get("TFQUANT_TENSORFLOW_DIR")]
    spec = importlib.util.find_spec("tensorflow")
    if spec and spec.submodule_search_locations:
        folders.append(spec.submodule_search_locations[0])
    folders += [
        os.path.join(sysconfig.get_paths()[k], "tensorflow") for k in ("purelib", "platlib")
    ]
    for folder in folders:
        if folder and (pathlib.Path(folder) / "include" / "tensorflow").is_dir():
            return pathlib.Path(folder)
    return None


def tensorflow_version(folder):
    """Version of the TensorFlow in `folder`, from the metadata beside it; `"unknown"` without."""
    found = sorted(pathlib.Path(folder).parent.glob("tensorflow*.dist-info"))
    for path in found:
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        if name in ("tensorflow", "tensorflow_cpu"):
            return version
    return "unknown"


def compiler():
    """Path of the C++ compiler: `$CXX`, `g++` or `clang++`; `None` without any."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def compiler_version():
    """First line of what the compiler says of itself; `None` without a compiler."""
    if compiler() is None:
        return None
    done = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]


def stamp(tensorflow, root=None):
    """What a library was built from; one with another stamp is not loaded."""
    return {
        "tensorflow": tensorflow_version(tensorflow) if tensorflow else None,
        "compiler": compiler_version(),
        "sources": source_hash(root),
    }


def commands(out, objects, *, tensorflow=None, root=None, copts=(), machine=None):
    """The compiler calls that make `out`: a list of compilations, and the link.

    Args:
        out: Path of the library.
        objects: Folder for object files.
        tensorflow: TensorFlow's folder, or `None` for core and its C ABI alone.
        root: Folder of the sources.
        copts: Further options for every call, e.g. those of a sanitizer.
        machine: Processor to compile for; by default this one.

    Returns:
        `(compilations, link)`: lists of arguments.
    """
    root = pathlib.Path(root or source_root())
    lists = source_lists(root)
    machine = machine or platform.machine()
    by_machine = {"x86_64": "X86_64_PATHS", "AMD64": "X86_64_PATHS"}
    by_machine |= {"aarch64": "AARCH64_PATHS", "arm64": "AARCH64_PATHS"}
    jobs = [(name, []) for name in lists["CORE_SOURCES"]]
    paths = lists.get(by_machine.get(machine), {})
    jobs += [(path_source(name), options.split()) for name, options in paths.items()]
    if tensorflow:
        include = ["-isystem", str(pathlib.Path(tensorflow) / "include")]
        jobs += [(n, lists["TENSORFLOW_COPTS"] + include) for n in lists["TENSORFLOW_SOURCES"]]
    base = [
        compiler() or "c++",
        *lists["COPTS"],
        "-fPIC",
        cuda_folder_option(root),
        *path_options(lists),
    ]
    compilations, names = [], []
    for source, options in jobs:
        name = str(pathlib.Path(objects) / (source.replace("/", "_") + ".o"))
        compilations.append([*base, *options, *copts, "-c", str(root / source), "-o", name])
        names.append(name)
    link = [base[0], "-shared", *copts, *names, "-o", str(out), "-lpthread"]
    if tensorflow:
        link += [f"-L{tensorflow}", "-l:libtensorflow_framework.so.2"]
    return compilations, link


def path_source(name):
    """File of a path of `X86_64_PATHS` or `AARCH64_PATHS`."""
    return f"core/{name}/kernels.cc"


def path_options(lists):
    """What tells path.cc the names of the paths, in their order."""
    return [
        f"-DTFQUANT_{key}=" + "".join(f"TFQUANT_PATH({name})" for name in lists[key])
        for key in ("X86_64_PATHS", "AARCH64_PATHS")
    ]


def cuda_folder_option(root):
    """Where the assembler finds the text of the GPU kernels, which the library carries."""
    return f'-DTFQUANT_CUDA_FOLDER="{pathlib.Path(root).resolve() / "core" / "cuda"}"'


def compile_library(out, *, tensorflow=None, root=None, copts=()):
    """Compiles the library and writes its stamp beside it.

    Args:
        out: Path of the library; written as a whole or not at all.
        tensorflow: TensorFlow's folder, or `None` for core and its C ABI alone.
        root: Folder of the sources.
        copts: Further compiler options.

    Raises:
        BuildError: If there is no compiler, or it fails; with what it said.
    """
    if compiler() is None:
        raise BuildError("There is no C++ compiler: install g++, or set CXX.")
    out = pathlib.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = pathlib.Path(folder) / out.name
        compilations, link = commands(made, folder, tensorflow=tensorflow, root=root, copts=copts)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(_call, compilations))
        _call(link)
        text = json.dumps(stamp(tensorflow, root), indent=1)
        (pathlib.Path(folder) / STAMP).write_text(text)
        os.replace(made, out)
        os.replace(pathlib.Path(folder) / STAMP, out.parent / STAMP)


def _call(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.splitlines()[-20:])
        raise BuildError(f"The compiler failed: {' '.join(command)}\n{tail}")
