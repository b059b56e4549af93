"""AWQ: weights that are read with large activations get finer steps, as far as that serves."""

import numpy as np
from keras import ops

from tfquant.quantizers import AbsMax
from tfquant.scaling.pairs import Pair, carrying, kernel_of, settled

# Powers of the mean magnitude that are tried.
GRID = 20


def search(pair: Pair, grid: int = GRID) -> np.ndarray:
    """Returns the factors with which the readers' outputs are closest to the float model's.

        f = mean |x|^p   or   mean |x|^p / max |V|^(1 - p),   p = n / grid,  n = 0 .. grid

    where `V` reads the channel. Weights are rounded to the nearest, clipped where that serves the
    outputs, and what is read to the grid that its own range gives (Lin et al. 2023,
    arXiv:2306.00978, section 3.2). In front of a depthwise convolution it is `max |x|` that has
    the powers: no weights share a step there, and activations their range.

    Args:
        pair: `Pair` that was looked at.
        grid: Number of powers.
    """
    seen, read = pair.magnitudes(), np.abs(pair.read()).max(axis=1)
    size = seen.max(axis=0) if pair.by_channel else seen.mean(axis=0)
    known = carrying(size) if pair.by_channel else carrying(size, read)
    size, read = (np.where(known, x, 1.0) for x in (size, read))
    expected = {reader: _output(reader, x) for reader, x in pair.seen.items()}
    powers = np.arange(grid + 1) / grid
    tried = [size**power for power in powers]
    if not pair.by_channel:
        tried += [size**power / read ** (1 - power) for power in powers]
    best, least = np.ones(len(size)), np.inf
    for factors in (settled(factors, known) for factors in tried):
        found = sum(
            _noise(_rounded_output(pair, reader, x, factors), expected[reader])
            for reader, x in pair.seen.items()
        )
        if found < least:
            best, least = factors, found
    return best


def _noise(found, expected):
    """Returns noise over signal, without the means of channels, which biases give back."""
    errors = (found - expected).reshape(-1, expected.shape[-1])
    signal = expected.reshape(-1, expected.shape[-1]).var(axis=0).sum()
    return errors.var(axis=0).sum() / max(signal, 1e-30)


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
    if isinstance(quantizer, AbsMax):
        steps = steps * ops.convert_to_numpy(quantizer.best_clip(w))
    steps = ops.convert_to_numpy(quantizer.spread(np.maximum(steps, 1e-12)))
    w = steps * np.clip(np.rint(w / steps), quantizer.spec.qmin, quantizer.spec.qmax)
    x = x / np.tile(factors, x.shape[-1] // len(factors)).astype(x.dtype)
    spec = reader.quantize_config.activations
    if spec is not None:
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        step = max((high - low) / (2**spec.num_bits - 1), 1e-30)
        x = step * np.rint(x / step)
    return _output(reader, x.astype(np.float32), w.astype(np.float32))
