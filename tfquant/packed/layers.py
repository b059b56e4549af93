"""Which layer on packed weights takes the place of which layer of Keras."""

import numpy as np
from keras import activations, layers

from tfquant.lowbit.layers import PackedConv, PackedDense
from tfquant.numerics.packing import MAX_DEPTH

# Widths that packed weights have, narrowest first. (Weights of 1 bit are another arithmetic.)
WIDTHS = (2, 4, 8)


def store(q, num_bits: int, negate: bool = True):
    """Finds the narrowest width for integer weights.

    Folding a batch norm of negative gain negates a channel, and the 2-bit integers -2 to 1 have
    no 2. Such channels are stored negated.

    Args:
        q: Integer array, the output channel last.
        num_bits: Width of the grid that they come from.
        negate: Whether channels may be stored negated.

    Returns:
        `(q, num_bits, sign)`: the integers to store, their width, and a float array of -1 for each
        channel that is negated and 1 for the others, or `None`.
    """
    for width in WIDTHS:
        low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
        over = (q.reshape(-1, q.shape[-1]).max(axis=0) > high) & negate
        stored = np.where(over, -q, q)
        if width >= num_bits and low <= stored.min() and stored.max() <= high:
            return stored, width, np.where(over, -1.0, 1.0) if over.any() else None
    raise AssertionError(f"Integers of at most 8 bits are expected. Received: {q.min()}, {q.max()}")


def why_not(layer) -> str:
    """Returns why `layer` cannot have packed weights; nothing if it can."""
    if type(layer) not in _MAKERS:
        return "no packed kernel for this type of layer"
    if layer.activation is not activations.linear:
        return "its activation is part of it"
    if getattr(layer, "groups", 1) != 1:
        return "no packed kernel for grouped convolutions"
    if layer.kernel.shape[-1] and np.prod(layer.kernel.shape[:-1]) > MAX_DEPTH:
        return f"a channel has more than {MAX_DEPTH} weights"
    return ""


def make(layer, q, scale, bias=None, **settings):
    """Makes the packed layer that takes the place of `layer`.

    Args:
        layer: Keras layer for which `why_not` finds nothing.
        q: Integer array of the shape of its kernel.
        scale: Float array, one step for each output channel.
        bias: Float array, likewise, or `None`.
        **settings: Of `tfquant.lowbit.layers.PackedLayer`.

    Returns:
        `PackedLayer`.
    """
    return _MAKERS[type(layer)](layer, q, scale, bias, settings)


def _dense(layer, q, scale, bias, settings):
    del layer
    return PackedDense.from_integers(q, scale, bias, **settings)


def _conv(layer, q, scale, bias, settings):
    names = ("strides", "padding", "dilation_rate")
    settings |= {name: getattr(layer, name) for name in names}
    return PackedConv.from_integers(q, scale, bias, **settings)


_MAKERS = {layers.Dense: _dense, layers.Conv1D: _conv, layers.Conv2D: _conv}
