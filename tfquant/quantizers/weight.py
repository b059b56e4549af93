"""What the quantizers of weights share: a symmetric grid, one step for each channel."""

import math

import keras
import numpy as np
from keras import ops

from tfquant.numerics import PerAxis, QuantParams, fake_quantize
from tfquant.numerics.params import SMALLEST_SCALE
from tfquant.quantizers.base import Quantizer, RecordingScope

# Fractions of the largest magnitude that `best_clip` tries.
CLIP_CANDIDATES = np.linspace(0.2, 1.0, 81)

# Weights that `best_clip` looks at together.
CLIP_BLOCK = 2**16


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
            training: Whether gradients are wanted, and a unit in the last place is not.
            scale: Step to use instead of the quantizer's own, of shape `scale_shape`.
        """
        scope = RecordingScope.current()
        if not self.active or (scope is not None and not scope.quantize_weights):
            return self.idle(x, training)
        w = ops.cast(x, "float32")
        if training:
            y = self.train(w)
        else:
            params = self.params(w) if scale is None else QuantParams(scale, 0)
            y = fake_quantize(self.latent(w), params, self.spec)
        return ops.cast(y, x.dtype)

    def train(self, x):
        w, scale = self.latent(x), self.params(x).scale
        shape, spec = self.scale_shape, self.spec
        rows = next((i for i, size in enumerate(shape) if size != 1), len(shape))
        if spec.num_bits > 8 or not spec.narrow_range or shape[rows:] != tuple(w.shape[rows:]):
            return fake_quantize(w, QuantParams(scale, 0), spec)
        # Channels come last: one kernel forward and one back. The largest weight must not fall
        # outside by a rounding error, where it would get no gradient.
        top = ops.reshape(scale, (-1,)) * (spec.qmax * (1 + 2.0**-20))
        y = keras.quantizers.fake_quant_with_min_max_vars(
            ops.reshape(w, (-1, top.shape[0])),
            -top,
            top,
            num_bits=spec.num_bits,
            narrow_range=True,
            axis=1,
        )
        return ops.reshape(y, w.shape)

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
        if self.spec.num_bits >= 8:
            return np.ones(self.scale_shape, np.float32)
        kept = [axis for axis in range(w.ndim) if axis not in self.reduced_axes]
        rows = w.transpose(*kept, *self.reduced_axes)
        rows = rows.reshape(math.prod(self.scale_shape), -1)
        best = np.empty(len(rows), np.float32)
        # Few rows at a time, which stay in the cache for all candidates.
        size = max(1, CLIP_BLOCK // max(rows.shape[1], 1))
        for start in range(0, len(rows), size):
            best[start : start + size] = self._best_clip(
                np.ascontiguousarray(rows[start : start + size])
            )
        return best.reshape(self.scale_shape)

    def _best_clip(self, rows):
        """Returns the best fraction of each row."""
        top = np.abs(rows).max(axis=1, initial=0, keepdims=True)
        best, best_error = np.ones(len(rows), np.float32), np.full(len(rows), np.inf)
        error = np.empty(rows.shape, np.float32)
        for clip in CLIP_CANDIDATES:
            scale = np.maximum(np.float32(clip) * top / self.spec.qmax, SMALLEST_SCALE)
            np.multiply(rows, 1 / scale, out=error)
            np.rint(error, out=error)
            np.maximum(error, np.float32(self.spec.qmin), out=error)
            np.minimum(error, np.float32(self.spec.qmax), out=error)
            error *= scale
            error -= rows
            squares = np.einsum("ij,ij->i", error, error)
            best = np.where(squares < best_error, np.float32(clip), best)
            best_error = np.minimum(squares, best_error)
        return best


def positive(scale):
    """Replaces steps that are too small to divide by: the channel is zero."""
    return ops.where(scale > SMALLEST_SCALE, scale, ops.ones_like(scale))
