"""A binary matmul by larq-compute-engine, in its own environment, for contestants.py.

    python benchmarks/larq_rival.py SAVED_MODEL THREADS X.npy Y.npy

Converts and runs a 1x1 binary convolution, writes what it gives for `X.npy` to `Y.npy` and prints a
line; then reads numbers of calls and prints the seconds that they took together.

Needs larq-compute-engine and a numpy below 2, for which its wheel is built. Its package imports
TensorFlow for conversion; its two libraries, which are opened here by themselves, do not.
"""

import importlib.metadata
import importlib.util
import sys
import time

import numpy as np


def main():
    folder, threads, x_file, y_file = sys.argv[1:]
    converter = open_library("mlir/_tf_tfl_flatbuffer.so")
    tags, signatures, version = ["serve"], ["serving_default"], 1
    model = converter.convert_saved_model_to_tflite_flatbuffer(
        folder, tags, signatures, version, "arm", None
    )
    wrapper = open_library("tflite/python/interpreter_wrapper_lite.so")
    # The indirect BGEMM is its fastest here, by 3 to 8 times.
    reference, indirect, xnnpack = False, True, False
    interpreter = wrapper.LiteInterpreter(model, int(threads), reference, indirect, xnnpack)
    x = np.load(x_file)
    np.save(y_file, interpreter.predict([x])[0])
    print("ready", flush=True)
    for line in sys.stdin:
        repeats = int(line)
        begin = time.perf_counter()
        for _ in range(repeats):
            interpreter.predict([x])
        print(time.perf_counter() - begin, flush=True)


def open_library(name):
    """Opens one of larq-compute-engine's libraries, without the package around it."""
    files = importlib.metadata.files("larq_compute_engine") or []
    path = next(str(file.locate()) for file in files if str(file).endswith(name))
    spec = importlib.util.spec_from_file_location(name.rpartition("/")[2].split(".")[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
