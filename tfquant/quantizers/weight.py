"""What the quantizers of weights share: a symmetric grid, one step for each channel."""

import numpy as np
from keras import ops

from tfquant.numerics import PerAxis, QuantParams, fake_quantize
from tfquant.numerics.params import SMALLEST_SCALE
from tfquant.quantizers.base import Quantizer, RecordingScope

# Fractions of the largest magnitude that `best_clip` tries.
CLIP_CANDIDATES = np.linspace(0.4, 1.0, 61)


class WeightQuantizer(Quantizer):
    """Symmetric grid of a weight.

    Args:
        spec: Symmetric `QuantSpec`, per tensor or per axis.

    Attributes:
        scale_shape: Shape of the steps: that of the weight, 1 along every axis that shares one.
        reduced_axes: Axes that share a step.
    """

    def build(self, input_shape):
        """Finds out which axes share a step. Subclasses create their variables."""
        granularity = self.spec.granularity
        axes = granularity.axes if isinstance(granularity, PerAxis) else ()
        rank = len(input_shape)
        channel_axes = {axis % rank for axis in axes}
        self.reduced_axes = tuple(axis for axis in range(rank) if axis not in channel_axes)
        self.scale_shape = tuple(
            size if axis in channel_axes else 1 for axis, size in enumerate(input_shape)
        )
        self.built = True

    def fit(self, w) -> None:
        """Sets the grid for the weight `w`, an array, as well as it can be without training."""

    def latent(self, w):
        """Returns the real values that are rounded; `w` itself for most quantizers."""
        return w

    def call(self, x, training=None, scale=None):
        """Returns `x` rounded to the grid, in its own dtype.

        Args:
            x: The weight.
            training: Not used.
            scale: Step to use instead of the quantizer's own, of shape `scale_shape`.
        """
        del training
        scope = RecordingScope.current()
        if not self.active or (scope is not None and not scope.quantize_weights):
            return x
        w = ops.cast(x, "float32")
        if scale is None:
            y = self.train(w)
        else:
            y = fake_quantize(self.latent(w), QuantParams(scale, 0), self.spec)
        return ops.cast(y, x.dtype)

    def train(self, x):
        return fake_quantize(self.latent(x), self.params(x), self.spec)

    def largest(self, x):
        """Returns the largest magnitude of each channel, without a gradient."""
        magnitude = ops.max(ops.abs(ops.cast(x, "float32")), axis=self.reduced_axes, keepdims=True)
        return ops.stop_gradient(magnitude)

    def best_clip(self, w) -> np.ndarray:
        """Returns the fraction of the largest magnitude with the least squared error, by channel.

        At 8 bits the full range is as good, and nothing is clipped.

        Args:
            w: The weight, an array.
        """
        w = np.asarray(w, np.float32)
        top = np.abs(w).max(axis=self.reduced_axes, keepdims=True)
        best, best_error = np.ones_like(top), np.full_like(top, np.inf)
        if self.spec.num_bits >= 8:
            return best
        for clip in CLIP_CANDIDATES:
            scale = np.maximum(clip * top / self.spec.qmax, SMALLEST_SCALE)
            q = np.clip(np.rint(w / scale), self.spec.qmin, self.spec.qmax)
            error = ((w - q * scale) ** 2).sum(axis=self.reduced_axes, keepdims=True)
            best = np.where(error < best_error, clip, best)
            best_error = np.minimum(error, best_error)
        return best


def positive(scale):
    """Replaces steps that are too small to divide by: the channel is zero."""
    return ops.where(scale > SMALLEST_SCALE, scale, ops.ones_like(scale))
