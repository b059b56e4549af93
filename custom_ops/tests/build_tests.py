"""Builds a C++ program of this folder with core, from the one list of sources.

    python custom_ops/tests/build_tests.py core_test --out /tmp/core_test \
        --copts=-fsanitize=address,undefined --copts=-fno-sanitize-recover=all

`CXX` chooses the compiler; `--machine aarch64` the sources of another processor; `--simde` emulates
what lies beyond AVX2. `gpu_test` is linked with the emulated GPU, and `emulated_gpu` is that as a
library, for gpu_check.py. prove.py calls all of it.
"""

import argparse
import concurrent.futures
import importlib.util
import os
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def load_build():
    """tfquant/lowbit/build.py, without importing tfquant, which needs TensorFlow."""
    path = ROOT.parent / "tfquant" / "lowbit" / "build.py"
    spec = importlib.util.spec_from_file_location("tfquant_lowbit_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gpu_commands(out, folder, names, copts):
    """The calls that make a program or library of the GPU path alone: compilations, link."""
    build = load_build()
    base = [build.compiler() or "c++", *build.source_lists(ROOT)["COPTS"], "-fPIC", *copts]
    objects = [f"{folder}/{name.replace('/', '_')}.o" for name in names]
    calls = [[*base, "-c", str(ROOT / n), "-o", o] for n, o in zip(names, objects, strict=True)]
    return calls, [base[0], *copts, *objects, "-o", str(out), "-lpthread"]


def emulated_gpu(out, copts=()):
    """Makes the library of the emulated GPU: the C ABI of cuda_api.h on ordinary memory."""
    lists = load_build().source_lists(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        names = lists["GPU_SOURCES"] + lists["EMULATED_SOURCES"]
        calls, link = gpu_commands(out, folder, names, copts)
        _run(calls, [*link, "-shared"])


def emulated_ops(out, tensorflow, copts=()):
    """Makes a library of the ops whose only kernels are the GPU's, on the emulated GPU."""
    build = load_build()
    lists = build.source_lists(ROOT)
    extra = [*lists["TENSORFLOW_COPTS"], "-isystem", f"{tensorflow}/include"]
    extra.append("-DTFQUANT_GPU_KERNELS_ON=DEVICE_CPU")
    with tempfile.TemporaryDirectory() as folder:
        names = lists["GPU_SOURCES"] + lists["EMULATED_SOURCES"]
        names += ["ops/lowbit_ops.cc", "kernels/lowbit_ops_gpu.cc"]
        calls, link = gpu_commands(out, folder, names, [*copts, *extra])
        _run(calls, [*link, "-shared", f"-L{tensorflow}", "-l:libtensorflow_framework.so.2"])


def _by_simde(call):
    """The call of the compiler, with what lies beyond AVX2 emulated where it is used."""
    beyond = ("-mavx512", "-mavxvnni", "-mamx")
    if not any(option.startswith(beyond) for option in call):
        return [*call, "-DTFQUANT_SIMDE"]
    call = [option for option in call if not option.startswith(beyond)]
    include = ["-include", str(ROOT / "tests" / "simde_avx512.h"), "-Wno-psabi"]
    return [*call, "-DTFQUANT_SIMDE", *include]


def _program(name, out, folder, copts, machine, simde):
    build = load_build()
    lists = build.source_lists(ROOT)
    if name == "gpu_test":
        names = lists["GPU_SOURCES"] + lists["EMULATED_SOURCES"] + lists["GPU_TEST_SOURCES"]
        return gpu_commands(out, folder, names, copts)
    calls, link = build.commands(out, folder, copts=copts, machine=machine)
    calls = [_by_simde(call) for call in calls] if simde else calls
    source, made = str(ROOT / "tests" / f"{name}.cc"), f"{folder}/program.o"
    first = calls[0]
    calls.append([*first[: first.index("-c")], "-c", source, "-o", made])
    link = [word for word in link if word != "-shared"]
    link.insert(1, made)
    return calls, link


def _run(calls, link):
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda call: subprocess.run(call, check=True), calls))
    subprocess.run(link, check=True)


def main():
    """Compiles and links."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="name of a .cc file here, without its ending")
    parser.add_argument("--out", required=True)
    parser.add_argument("--machine", default=None)
    parser.add_argument("--simde", action="store_true", help="emulate AVX512, AVX-VNNI and AMX")
    parser.add_argument("--copts", action="append", default=[], help="one option; repeat for more")
    args = parser.parse_args()
    if args.program == "emulated_gpu":
        return emulated_gpu(args.out, args.copts)
    with tempfile.TemporaryDirectory() as folder:
        _run(*_program(args.program, args.out, folder, args.copts, args.machine, args.simde))


if __name__ == "__main__":
    main()
