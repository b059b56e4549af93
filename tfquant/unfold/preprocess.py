"""Layers in front of a network that scale its inputs, as factors and shifts of channels."""

import keras
import numpy as np

from tfquant.layers.parts import CountTokens
from tfquant.pieces.affine import channel_affine, constants
from tfquant.wrappers import QuantizeAnnotate

# A column of a table that varies by less than a sixteenth of what the grid of all columns spans
# loses more than half of its bits on it: tables of which one does are scaled in float, in front.
FAR_APART = 16.0

# What a column spans around its mean, in deviations.
DEVIATIONS = 3.0


def unfold_rescaling(layer, scheme):
    """Computes `x * scale + offset` in integers; see `tfquant.unfold.unfold`."""
    if not scheme.static:
        return None
    factor, shift = constants(layer.scale), constants(layer.offset)
    if _is_far_apart(np.zeros(1), 1.0 / np.maximum(np.abs(factor), np.finfo(np.float32).tiny)):
        return None

    def call(x):
        if x.dtype == "uint8":  # As real numbers, they have a grid that holds each of them.
            x = keras.ops.cast(x, "float32")
        return channel_affine(x, factor, shift, False, layer.name)

    return call


def unfold_normalization(layer, scheme):
    """Computes `(x - mean) / sqrt(variance)`, or the inverse, in integers."""
    if not scheme.static:
        return None
    mean, variance = constants(layer.mean), constants(layer.variance)
    deviation = np.maximum(np.sqrt(variance), np.finfo(np.float32).eps)

    def call(x):
        channels = x.shape[-1]
        if any(v.size not in (1, channels) for v in (mean, deviation)):
            return None
        # Means that somebody wrote, beside variances of 1, are none of these data.
        centre = mean if layer.input_mean is None else np.zeros(1)
        if _is_far_apart(centre, deviation):
            return None  # One grid would hold the columns that vary most, and no other.
        if layer.invert:
            return channel_affine(x, deviation, mean, False, layer.name)
        return channel_affine(x, 1.0 / deviation, -mean / deviation, False, layer.name)

    return call


def _is_far_apart(mean: np.ndarray, deviation: np.ndarray) -> bool:
    """Whether the grid of all columns leaves little of one.

        max(|mean|, DEVIATIONS * deviation) > FAR_APART * DEVIATIONS * smallest deviation

    A grid holds 0, so that a column far from it spans its mean.

    Args:
        mean: Of each column, or of all.
        deviation: Likewise, positive.
    """
    widest = max(np.abs(mean).max(), DEVIATIONS * deviation.max())
    return bool(widest > FAR_APART * DEVIATIONS * deviation.min())


def unfold_category_encoding(layer, scheme):
    """Counts tokens by comparing: LiteRT has no histogram. See `tfquant.unfold.unfold`."""
    del scheme
    if layer.output_mode not in ("multi_hot", "count") or layer.sparse:
        return None

    def call(x, count_weights=None):
        if count_weights is not None or len(x.shape) != 2:
            return None
        once = layer.output_mode == "multi_hot"
        return QuantizeAnnotate(CountTokens(layer.num_tokens, once, name=layer.name))(x)

    return call
