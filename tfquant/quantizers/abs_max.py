"""Weights: symmetric, scaled by their largest magnitude."""

import keras
import numpy as np
from keras import ops

from tfquant.numerics import PerAxis, QuantParams, fake_quantize
from tfquant.numerics.params import SMALLEST_SCALE
from tfquant.quantizers.base import Quantizer, RecordingScope

# Fractions of the largest magnitude that `fit` tries.
CLIP_CANDIDATES = np.linspace(0.4, 1.0, 61)


@keras.saving.register_keras_serializable(package="tfquant")
class AbsMax(Quantizer):
    """Symmetric grid whose range is the largest magnitude of the values, times `clip`.

        scale = clip * max(|w|) / qmax

    The scale follows the weights while they train; `clip` (one for each channel, 1 at first) is
    set by `fit` and stands still.

    Args:
        spec: Symmetric `QuantSpec`, per tensor or per axis.
    """

    def build(self, input_shape):
        """Creates `clip`, with length 1 along every axis that shares a scale."""
        granularity = self.spec.granularity
        axes = granularity.axes if isinstance(granularity, PerAxis) else ()
        rank = len(input_shape)
        channel_axes = {axis % rank for axis in axes}
        self.reduced_axes = tuple(axis for axis in range(rank) if axis not in channel_axes)
        shape = [size if axis in channel_axes else 1 for axis, size in enumerate(input_shape)]
        self.clip = self.add_weight(
            shape=shape, initializer="ones", name="clip", trainable=False, dtype="float32"
        )
        self.built = True

    def params(self, x=None) -> QuantParams:
        """Returns `scale` of the shape of `clip` and `zero_point` 0."""
        magnitude = ops.max(ops.abs(ops.cast(x, "float32")), axis=self.reduced_axes, keepdims=True)
        # A product: graph optimizers turn a division by a constant into one, which rounds
        # differently, and the same model would have other integers in a graph than outside.
        scale = ops.stop_gradient(magnitude) * self.clip * (1.0 / self.spec.qmax)
        return QuantParams(ops.where(scale > SMALLEST_SCALE, scale, ops.ones_like(scale)), 0)

    def call(self, x, training=None, scale=None):
        """Returns `x` rounded to the grid.

        Args:
            x: The weight.
            training: Not used.
            scale: Step to use instead of the quantizer's own, of the shape of `clip`.
        """
        del training
        scope = RecordingScope.current()
        if scope is not None and not scope.quantize_weights:
            return x
        params = self.params(x) if scale is None else QuantParams(scale, 0)
        y = fake_quantize(ops.cast(x, "float32"), params, self.spec)
        return ops.cast(y, x.dtype)

    def fit(self, w) -> None:
        """Sets `clip` to the fraction with the least squared error, channel by channel.

        At 8 bits the full range is as good, and nothing is clipped.

        Args:
            w: The weight, an array.
        """
        if self.spec.num_bits >= 8:
            return
        w = np.asarray(w, np.float32)
        top = np.abs(w).max(axis=self.reduced_axes, keepdims=True)
        best, best_error = np.ones_like(top), np.full_like(top, np.inf)
        for clip in CLIP_CANDIDATES:
            scale = np.maximum(clip * top / self.spec.qmax, SMALLEST_SCALE)
            q = np.clip(np.rint(w / scale), self.spec.qmin, self.spec.qmax)
            error = ((w - q * scale) ** 2).sum(axis=self.reduced_axes, keepdims=True)
            best = np.where(error < best_error, clip, best)
            best_error = np.minimum(error, best_error)
        self.clip.assign(best)
