"""AWQ: weights that are read with large activations get finer steps, as far as that serves."""

import numpy as np
from keras import ops

from tfquant.scaling.pairs import Pair, alive, kernel_of

# Powers of the mean magnitude that are tried.
GRID = 20


def search(pair: Pair, grid: int = GRID) -> np.ndarray:
    """Returns the factors with which the readers' outputs are closest to the float model's.

        f = mean |x|^(n / grid),  n = 0 .. grid - 1,  over the root of its largest times its least

    Weights are rounded to the nearest, with the largest magnitude for a range, and what is read to
    the grid that its own range gives (Lin et al. 2023, arXiv:2306.00978, section 3.2).

    Args:
        pair: `Pair` that was looked at.
        grid: Number of powers.
    """
    size = pair.magnitudes().mean(axis=0)
    known = alive(size)
    size = np.where(known, size, 1.0)
    expected = {reader: _output(reader, x) for reader, x in pair.seen.items()}
    best, least = np.ones(len(size)), np.inf
    for power in np.arange(grid) / grid:
        factors = size**power
        factors = np.where(known, factors / np.sqrt(factors.max() * factors.min()), 1.0)
        found = sum(
            np.mean((_rounded_output(pair, reader, x, factors) - expected[reader]) ** 2)
            / max(np.var(expected[reader]), 1e-30)
            for reader, x in pair.seen.items()
        )
        if found < least:
            best, least = factors, found
    return best


def _output(reader, x, kernel=None):
    kernel = kernel_of(reader).value if kernel is None else kernel
    weights = [(kernel_of(reader), ops.convert_to_tensor(kernel))]
    y = reader.call_layer(ops.convert_to_tensor(x), weights=weights, training=False)
    return ops.convert_to_numpy(y)


def _rounded_output(pair, reader, x, factors):
    """Returns what a reader computes of rounded channels and weights, both scaled."""
    ((variable, quantizer),) = reader.weight_quantizers
    w = pair.scaled(ops.convert_to_numpy(variable), factors)
    steps = ops.convert_to_numpy(quantizer.largest(w)) / quantizer.spec.qmax
    steps = ops.convert_to_numpy(quantizer.spread(np.maximum(steps, 1e-12)))
    w = steps * np.clip(np.rint(w / steps), quantizer.spec.qmin, quantizer.spec.qmax)
    x = x / np.tile(factors, x.shape[-1] // len(factors)).astype(x.dtype)
    spec = reader.quantize_config.activations
    if spec is not None:
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        step = max((high - low) / (2**spec.num_bits - 1), 1e-30)
        x = step * np.rint(x / step)
    return _output(reader, x.astype(np.float32), w.astype(np.float32))
