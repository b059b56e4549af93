"""Finds, compiles and loads the op library, once; and says how that went."""

import ctypes
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import warnings

from tfquant.lowbit import build


class FallbackWarning(UserWarning):
    """The compiled ops are missing and the slow reference does their work."""


@dataclasses.dataclass(frozen=True)
class Doctor:
    """How the low-bit ops are doing on this machine.

    Attributes:
        built: Whether the compiled library is loaded.
        library: Its file, or `None`.
        path: The path that runs: `"avx512"`, ..., or `"reference"`.
        supported_paths: The paths that this processor can run, plainest first.
        tensorflow: Version of TensorFlow that the ops are built for, or `None`.
        compiler: The compiler found, or `None`.
        gpu: What there is to run the ops on a GPU and what is missing, and on which GPU the kernels
            were checked; empty where the library is not built.
        problem: What is wrong, in words; empty if nothing is.
        remedy: How to mend it; empty if nothing is wrong.
    """

    built: bool
    library: str | None
    path: str
    supported_paths: tuple[str, ...]
    tensorflow: str | None
    compiler: str | None
    gpu: str
    problem: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class _Loaded:
    file: pathlib.Path | None
    ops: object | None
    problem: str


def doctor():
    """Looks at the compiled ops, loading (and if need be compiling) them.

    Returns:
        A `Doctor`.

    Example:

    >>> doctor().path
    'avx512'
    """
    loaded = _load()
    folder = build.tensorflow_folder()
    tensorflow = build.tensorflow_version(folder) if folder else None
    path, supported, problem = "reference", (), loaded.problem
    if loaded.ops is not None:
        library = c_library()
        supported = supported_paths(library)
        chosen = library.tfquant_chosen_path()
        if chosen is None:
            problem = library.tfquant_error().decode()
        path = chosen.decode() if chosen else "none"
    return Doctor(
        built=loaded.ops is not None,
        library=str(loaded.file) if loaded.file else None,
        path=path,
        supported_paths=supported,
        tensorflow=tensorflow,
        compiler=build.compiler_version(),
        gpu=_gpu() if loaded.ops is not None else "",
        problem=problem,
        remedy=_remedy(problem),
    )


def ops():
    """The module of compiled ops, or `None` after one warning that says why not."""
    loaded = _load()
    if loaded.ops is None:
        _warn_once(loaded.problem)
    return loaded.ops


def load_if_built():
    """Loads the compiled ops if they are there, so that TensorFlow can load graphs that name them.

    Compiles nothing and warns of nothing: who needs the ops will hear of them.
    """
    try:
        tensorflow = build.tensorflow_folder()
        found = tensorflow is not None and _find(build.stamp(tensorflow)) is not None
    except build.BuildError:
        return
    if found:
        _load()


def c_library():
    """The same library by its C ABI; `None` where there is none.

    Returns:
        A `ctypes.CDLL` with the result types set.
    """
    loaded = _load()
    return open_c_library(loaded.file) if loaded.file and loaded.ops is not None else None


@functools.cache
def open_c_library(file):
    """Opens a library for its C ABI (`custom_ops/core/c_api.h`) alone."""
    library = ctypes.CDLL(str(file))
    library.tfquant_error.restype = ctypes.c_char_p
    library.tfquant_path_name.restype = ctypes.c_char_p
    library.tfquant_chosen_path.restype = ctypes.c_char_p
    library.tfquant_packed_bytes.restype = ctypes.c_int64
    library.tfquant_cuda_error.restype = ctypes.c_char_p
    library.tfquant_cuda_describe.restype = ctypes.c_char_p
    library.tfquant_cuda_kernel_name.restype = ctypes.c_char_p
    return library


def path_names(library):
    """Names of all paths of an opened library, plainest first; the list is `sources.bzl`."""
    names = []
    while (name := library.tfquant_path_name(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def supported_paths(library):
    """Names of the paths of an opened library that this processor can run, plainest first."""
    names = path_names(library)
    return tuple(name for i, name in enumerate(names) if library.tfquant_path_supported(i))


def _gpu():
    """What the library says of NVRTC, driver and GPU, and the first line of the checked table."""
    table = build.source_root() / "core" / "cuda" / "checked.md"
    if table.is_file():
        checked = table.read_text().splitlines()[0].removeprefix("# ")
    else:
        checked = "The GPU kernels were compiled and emulated, and not yet run on a GPU"
    return f"{c_library().tfquant_cuda_describe().decode()}; {checked}."


def cache_folder(stamp):
    """Folder of a library that was compiled at first use, one for each stamp."""
    root = os.environ.get("TFQUANT_CACHE_DIR")
    if root is None:
        home = os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")
        root = pathlib.Path(home) / "tfquant"
    key = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:16]
    return pathlib.Path(root) / f"ops-{key}"


@functools.cache
def _load():
    try:
        file = _find_or_build()
    except build.BuildError as error:
        return _Loaded(None, None, str(error))
    import tensorflow as tf

    try:
        return _Loaded(file, tf.load_op_library(str(file)), "")
    except tf.errors.NotFoundError as error:
        return _Loaded(file, None, f"The library does not load: {error}")


def _find_or_build():
    """File of a library that fits this TensorFlow and these sources."""
    tensorflow = build.tensorflow_folder()
    if tensorflow is None:
        raise build.BuildError("TensorFlow is not installed.")
    wanted = build.stamp(tensorflow)
    found = _find(wanted)
    if found is not None:
        return found
    cached = cache_folder(wanted)
    if os.environ.get("TFQUANT_BUILD") == "0":
        raise build.BuildError("The ops are not compiled, and TFQUANT_BUILD=0 forbids it now.")
    print("tfquant: compiling the low-bit ops, once; this takes about a minute.", flush=True)
    try:
        build.compile_library(cached / build.LIBRARY, tensorflow=tensorflow)
    except OSError as error:
        raise build.BuildError(f"The ops cannot be written to {cached}: {error}.") from error
    return cached / build.LIBRARY


def _find(wanted):
    """File of a library with the stamp `wanted`, packaged or compiled before; `None` without."""
    if "TFQUANT_LIBRARY" in os.environ:  # A build of one's own: for debugging, or emulated.
        return pathlib.Path(os.environ["TFQUANT_LIBRARY"])
    packaged = pathlib.Path(__file__).parent / "_lib"
    allowed = os.environ.get("TFQUANT_PACKAGED") != "0"
    # A packaged library may come from another compiler; it must fit TensorFlow and the sources.
    if allowed and _fits(packaged, wanted, ("tensorflow", "sources")):
        return packaged / build.LIBRARY
    cached = cache_folder(wanted)
    return cached / build.LIBRARY if _fits(cached, wanted, wanted) else None


def _fits(folder, wanted, keys):
    try:
        found = json.loads((folder / build.STAMP).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return (folder / build.LIBRARY).is_file() and all(found.get(k) == wanted[k] for k in keys)


@functools.cache
def _warn_once(problem):
    warnings.warn(
        f"tfquant runs its low-bit ops on the slow reference. {problem} {_remedy(problem)}",
        FallbackWarning,
        stacklevel=4,
    )


def _remedy(problem):
    if not problem:
        return ""
    unfit = "Install a TensorFlow that this tfquant supports, then start again."
    if "compiler failed" in problem:  # Its command names what others are told by.
        return unfit
    if "compiler" in problem:
        return "Install g++ or clang++ (or set CXX) and start again."
    if "TFQUANT_BUILD=0" in problem:
        return "Unset TFQUANT_BUILD and start again."
    if "TFQUANT_PATH" in problem:
        return "Unset TFQUANT_PATH or set it to one of the supported paths."
    if "written" in problem:
        return "Set TFQUANT_CACHE_DIR to a folder that can be written."
    if "sources" in problem:
        return "Install tfquant again: pip install --force-reinstall --no-deps tfquant."
    return unfit
