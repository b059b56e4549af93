"""Builds a C++ program of this folder with core, from the one list of sources.

    python custom_ops/tests/build_tests.py core_test --out /tmp/core_test \
        --copts=-fsanitize=address,undefined,-fno-sanitize-recover=all

`CXX` chooses the compiler; `--machine aarch64` the sources of another processor.
"""

import argparse
import concurrent.futures
import importlib.util
import os
import pathlib
import subprocess
import tempfile

_HERE = pathlib.Path(__file__).resolve().parent


def _load_build():
    path = _HERE.parents[1] / "tfquant" / "lowbit" / "build.py"
    spec = importlib.util.spec_from_file_location("tfquant_lowbit_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    """Compiles and links."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="name of a .cc file here, without its ending")
    parser.add_argument("--out", required=True)
    parser.add_argument("--machine", default=None)
    parser.add_argument("--copts", action="append", default=[], help="one option; repeat for more")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calls, link = _load_build().commands(
            args.out, folder, copts=args.copts, machine=args.machine
        )
        source, made = str(_HERE / f"{args.program}.cc"), f"{folder}/program.o"
        first = calls[0]
        calls.append([*first[: first.index("-c")], "-c", source, "-o", made])
        link = [word for word in link if word != "-shared"]
        link.insert(1, made)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda call: subprocess.run(call, check=True), calls))
        subprocess.run(link, check=True)


if __name__ == "__main__":
    main()
