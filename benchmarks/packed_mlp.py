"""A 4-layer, 4096-wide MLP at batch 1 in one `tf.function`: float32 against `tfq.to_packed`.

    python benchmarks/packed_mlp.py --threads 1

Prints the ratio of times within interleaved rounds and, each measured in a fresh process that
loads the model and runs it, the ratio of what the models add to the resident set: once as it is,
and once after glibc gave back what loading had freed (`malloc_trim`). The bar: at least 6 times as
fast, at most 0.2 of the memory. `--alone` as in lowbit_matmul.py.
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
from floor import ROOT
from lowbit_matmul import alone

KINDS = ("float", "packed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--scheme", default="w4a8")
    parser.add_argument("--alone", help="command that runs while the clock does")
    parser.add_argument("--resident", help="a .keras file: print what it adds to the resident set")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    if args.resident:
        print(*resident_bytes(args.resident))
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: os.path.join(folder, f"{kind}.keras") for kind in KINDS}
        measure_time(args, paths)
        measure_memory(args, paths)


def measure_time(args, paths):
    import keras
    import tensorflow as tf

    import tfquant as tfq
    from tfquant import lowbit

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    rng = np.random.default_rng(0)
    layers = [keras.layers.Dense(args.width, activation="relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((args.width,)), *layers], name="mlp")
    rows = rng.normal(size=(64, args.width)).astype(np.float32)
    quantized = tfq.quantize_model(model, args.scheme)
    if tfq.SCHEMES[args.scheme].static:
        tfq.calibrate(quantized, rows, progress=False)
    packed = tfq.to_packed(quantized, paths["packed"])
    model.save(paths["float"])
    print(packed.packing_report)
    expected, answer, real = (m.predict(rows, verbose=0) for m in (quantized, packed, model))
    if tfq.SCHEMES[args.scheme].static:
        assert np.array_equal(answer, expected)
    else:
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * expected.max())
    error = np.linalg.norm(answer - real) / np.linalg.norm(real)
    functions = [
        tf.function(lambda x, m=m: m(x, training=False), jit_compile=False) for m in (model, packed)
    ]
    x = tf.constant(rows[:1])
    times = np.empty((args.rounds, 2))
    for function in functions:
        function(x)
    with alone(args.alone):
        for i in range(args.rounds):
            for j, function in enumerate(functions):
                function(x)
                start = time.perf_counter()
                function(x)
                times[i, j] = time.perf_counter() - start
    ratio = times[:, 0] / times[:, 1]
    print(f"path {lowbit.doctor().path}, {args.threads} thread(s), {args.scheme}")
    print(f"relative error against float {error:.3f}, against the quantized model 0")
    medians = np.median(times, axis=0) * 1e3
    print(f"ms, medians: float {medians[0]:.2f}, packed {medians[1]:.2f}")
    print(
        f"times as fast: min {ratio.min():.2f} median {np.median(ratio):.2f} max {ratio.max():.2f}"
    )


def measure_memory(args, paths):
    files = {kind: os.path.getsize(paths[kind]) for kind in KINDS}
    print(f"file: {files['packed']:,} bytes, {files['packed'] / files['float']:.3f} of float")
    added = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--resident", paths[kind]]
        done = subprocess.run(
            [*command, "--threads", str(args.threads)], capture_output=True, text=True, check=True
        )
        added[kind] = [int(word) for word in done.stdout.splitlines()[-1].split()]
    for number, when in enumerate(("as it is", "trimmed")):
        packed, real = (added[kind][number] for kind in KINDS[::-1])
        print(f"resident set, {when}: +{packed:,} bytes, {packed / real:.3f} of float (+{real:,})")


def resident_bytes(path):
    """What loading a model and running it adds to the resident set, in bytes: as is, trimmed."""
    import keras
    import tensorflow as tf

    import tfquant as tfq  # noqa: F401  (knows the packed layers)

    def run(model):
        x = tf.zeros((1, *model.inputs[0].shape[1:]))
        tf.function(lambda x: model(x, training=False), jit_compile=False)(x).numpy()

    def resident(trim):
        gc.collect()
        if trim:
            ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # What TensorFlow sets up at its first graph is not the model's.
    run(keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, activation="relu")]))
    before = resident(trim=True)
    model = keras.saving.load_model(path, compile=False)
    run(model)
    return resident(trim=False) - before, resident(trim=True) - before


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
