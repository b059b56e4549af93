"""A 4-layer, 4096-wide MLP at batch 1 in one `tf.function`: float32 against packed w4a8.

    python benchmarks/packed_mlp.py --threads 1

Prints the ratio of times within interleaved rounds and the ratio of the weights' bytes. The bar: at
least 6 times as fast, at most 0.2 of the memory.
"""

import argparse
import os
import pathlib
import sys
import time

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])

    import keras
    import tensorflow as tf

    from tfquant import lowbit
    from tfquant.lowbit.layers import PackedDense

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    rng = np.random.default_rng(0)
    inputs = outputs = keras.Input((args.width,))
    packed_outputs = inputs
    for _ in range(4):
        q = rng.integers(-7, 8, (args.width, args.width))
        scale = np.full((args.width // 32, args.width), 2.0**-9)
        float_layer = keras.layers.Dense(args.width, activation="relu")
        outputs = float_layer(outputs)
        float_layer.set_weights([q * 2.0**-9, np.zeros(args.width)])
        packed = PackedDense.from_integers(q, scale, np.zeros(args.width), activation="relu")
        packed_outputs = packed(packed_outputs)
    models = [keras.Model(inputs, outputs), keras.Model(inputs, packed_outputs)]
    x = tf.constant(rng.normal(size=(1, args.width)), tf.float32)
    functions = [
        tf.function(lambda x, m=m: m(x, training=False), jit_compile=False) for m in models
    ]
    answers = [f(x).numpy() for f in functions]
    error = np.linalg.norm(answers[1] - answers[0]) / np.linalg.norm(answers[0])
    assert error < 0.05, error  # four roundings of activations to 8 bits
    times = np.empty((args.rounds, 2))
    for i in range(args.rounds):
        for j, function in enumerate(functions):
            function(x)
            start = time.perf_counter()
            function(x)
            times[i, j] = time.perf_counter() - start
    ratio = times[:, 0] / times[:, 1]
    sizes = [sum(np.prod(w.shape) * np.dtype(w.dtype).itemsize for w in m.weights) for m in models]
    print(f"path {lowbit.doctor().path}, {args.threads} thread(s), relative error {error:.4f}")
    medians = np.median(times, axis=0) * 1e3
    print(f"ms, medians: float {medians[0]:.2f}, packed {medians[1]:.2f}")
    print(
        f"times as fast: min {ratio.min():.2f} median {np.median(ratio):.2f} max {ratio.max():.2f}"
    )
    print(f"memory of the weights: {sizes[1] / sizes[0]:.3f} of float")


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    main()
