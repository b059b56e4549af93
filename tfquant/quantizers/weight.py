"""What the quantizers of weights share: a symmetric grid, one step for each channel or group."""

import abc
import math

import numpy as np
import tensorflow as tf
from keras import ops

from tfquant.numerics import PerAxis, PerGroup, QuantParams, fake_quantize, group_scale
from tfquant.numerics.arrays import arithmetic
from tfquant.numerics.params import SMALLEST_SCALE
from tfquant.quantizers.base import Quantizer, RecordingScope

# Fractions of the largest magnitude that `best_clip` tries.
CLIP_CANDIDATES = np.linspace(0.2, 1.0, 81)

# Weights that `best_clip` looks at together.
CLIP_BLOCK = 2**16


class WeightQuantizer(Quantizer):
    """Symmetric grid of a weight.

    Where a method takes a weight, that may be an array: it computes in NumPy then, as far as
    nothing is trained, and returns arrays.

    Args:
        spec: Symmetric `QuantSpec`, per tensor, per axis or per group.

    Attributes:
        scale_shape: Shape of the steps: that of the weight, with 1 along every axis that shares
            one, and the number of groups along an axis that is cut into groups.
        parts_shape: Shape of the weight with an axis that is cut into groups made two: groups, and
            the values of a group. That of the weight where there are no groups.
        reduced_axes: Axes of `parts_shape` that share a step.
    """

    def build(self, input_shape):
        """Finds out which values share a step. Subclasses create their variables.

        Raises:
            ValueError: If groups do not divide their axis.
        """
        granularity, shape = self.spec.granularity, tuple(input_shape)
        rank = len(shape)
        if isinstance(granularity, PerGroup):
            axis, size = granularity.axis % rank, granularity.group_size
            if shape[axis] % size:
                raise ValueError(
                    f"`group_size` must divide the axis that is cut into groups. Received: "
                    f"group_size={size}, axis {axis} of shape {shape}."
                )
            before, groups, behind = shape[:axis], shape[axis] // size, shape[axis + 1 :]
            self.parts_shape = (*before, groups, size, *behind)
            self.scale_shape = (*before, groups, *behind)
            self.reduced_axes = (axis + 1,)
        else:
            axes = granularity.axes if isinstance(granularity, PerAxis) else ()
            channel_axes = {axis % rank for axis in axes}
            self.parts_shape = shape
            self.scale_shape = tuple(n if i in channel_axes else 1 for i, n in enumerate(shape))
            self.reduced_axes = tuple(axis for axis in range(rank) if axis not in channel_axes)
        self.weight_shape = shape
        self.built = True

    @property
    def grouped(self) -> bool:
        """Whether groups along an axis share a step."""
        return isinstance(self.spec.granularity, PerGroup)

    @abc.abstractmethod
    def real_steps(self, x=None):
        """Returns steps of shape `scale_shape`, positive, as the family of the quantizer has them.

        Args:
            x: The weight.
        """

    def steps(self, x=None):
        """Returns the steps that weights are rounded with, of shape `scale_shape`.

        Those of groups are 16-bit floats; see `numerics.group_scale`.

        Args:
            x: The weight.
        """
        steps = self.real_steps(x)
        return group_scale(steps) if self.grouped else steps

    def spread(self, steps):
        """Returns steps of shape `scale_shape` such that they broadcast against the weight."""
        if not self.grouped:
            return steps
        xp = arithmetic(steps)
        kept = [1 if i in self.reduced_axes else n for i, n in enumerate(self.parts_shape)]
        steps = xp.broadcast_to(xp.reshape(steps, kept), self.parts_shape)
        return xp.reshape(steps, self.weight_shape)

    def params(self, x=None) -> QuantParams:
        """Returns `scale`, which broadcasts against the weight, and `zero_point` 0."""
        return QuantParams(self.spread(self.steps(x)), 0)

    def fit(self, w) -> None:
        """Sets the grid for the weight `w`, an array, as well as it can be without training."""

    def set_steps(self, steps) -> None:
        """Sets the steps, of shape `scale_shape`, to given ones, exactly.

        Raises:
            ValueError: If the quantizer finds its steps itself, as `LearnedThreshold` and `DoReFa`.
        """
        raise ValueError(
            "Steps can be given to the quantizers 'abs_max' and 'learned_step'. Received: "
            f"{type(self).__name__}. Pass weight_quantizer='abs_max' to quantize_model."
        )

    def checked_integers(self, integers, scale):
        """Returns given integers and steps as float32 arrays, integers in the shape of the weight.

        Args:
            integers: Array of the shape of the weight.
            scale: Step, or array whose shape broadcasts to `scale_shape`; `[channels]`, where the
                weight has a step for each channel.

        Raises:
            ValueError: If shapes do not fit, a value is no integer of the grid, or a step is not
                positive and finite (in groups: not a number of 8 significant bits).
        """
        spec, q = self.spec, np.asarray(integers)
        if q.shape != self.weight_shape:
            raise ValueError(
                f"`integers` must have the shape of the weight, {self.weight_shape}. Received: "
                f"shape {q.shape}."
            )
        if not (np.isfinite(q).all() and (q == np.round(q)).all()):
            raise ValueError("`integers` must hold whole numbers. Received: fractions or NaN.")
        if q.size and (q.min() < spec.qmin or q.max() > spec.qmax):
            raise ValueError(
                f"`integers` must lie from {spec.qmin} to {spec.qmax}, the grid of "
                f"{spec.num_bits} bits. Received: {q.min()} to {q.max()}."
            )
        steps = np.asarray(scale, np.float32)
        if steps.ndim == 1 and steps.size == math.prod(self.scale_shape):
            steps = steps.reshape(self.scale_shape)
        try:
            steps = np.broadcast_to(steps, self.scale_shape)
        except ValueError as error:
            raise ValueError(
                f"`scale` must broadcast to {self.scale_shape}. Received: shape {steps.shape}."
            ) from error
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            raise ValueError(
                f"`scale` must be positive and finite. Received: {steps.min()} to {steps.max()}."
            )
        if self.grouped and (np.asarray(group_scale(steps)) != steps).any():
            raise ValueError(
                "The scales of groups must be numbers of 8 significant bits, which half precision "
                "and bfloat16 both hold; see tfq.numerics.group_scale. Received: others."
            )
        return q.astype(np.float32), steps

    def scaled_steps(self, gain) -> list | None:
        """Returns what keeps the integers of a weight that is multiplied by `gain`.

        Args:
            gain: Positive tensor of the weight's rank.

        Returns:
            Pairs of a variable and its new value, or `None` where weights of one step have
            several gains, or the family of the quantizer knows no gains.
        """
        one_a_step = all(n in (1, m) for n, m in zip(gain.shape, self.scale_shape, strict=True))
        return self._scaled_steps(gain) if one_a_step else None

    def _scaled_steps(self, gain):
        """Returns the pairs of `scaled_steps`, or `None`."""
        del gain
        return None

    def latent(self, w):
        """Returns the real values that are rounded; `w` itself for most quantizers."""
        return w

    def call(self, x, training=None, scale=None):
        """Returns `x` rounded to the grid, in its own dtype.

        Args:
            x: The weight.
            training: Whether gradients are wanted, and a unit in the last place is not.
            scale: Step to use instead of the quantizer's own; it broadcasts against `x`.
        """
        scope = RecordingScope.current()
        if not self.active or (scope is not None and not scope.quantize_weights):
            return self.idle(x, training)
        xp = arithmetic(x)
        w = xp.cast(x, "float32")
        if training:
            y = self.train(w)
        else:
            params = self.params(w) if scale is None else QuantParams(scale, 0)
            y = fake_quantize(self.latent(w), params, self.spec)
        return arithmetic(y).cast(y, x.dtype)

    def train(self, x):
        w, scale = self.latent(x), self.params(x).scale
        shape, spec = self.scale_shape, self.spec
        rows = next((i for i, size in enumerate(shape) if size != 1), len(shape))
        last = not self.grouped and shape[rows:] == tuple(w.shape[rows:])
        if spec.num_bits > 8 or not spec.narrow_range or not last:
            return fake_quantize(w, QuantParams(scale, 0), spec)
        # Channels come last: one kernel forward and one back. The largest weight must not fall
        # outside by a rounding error, where it would get no gradient.
        top = ops.reshape(scale, (-1,)) * (spec.qmax * (1 + 2.0**-20))
        y = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            ops.reshape(ops.cast(w, "float32"), (-1, top.shape[0])),
            -top,
            top,
            num_bits=spec.num_bits,
            narrow_range=True,
        )
        return ops.cast(ops.reshape(y, w.shape), w.dtype)

    def largest(self, x):
        """Returns the largest magnitude of what shares a step, without a gradient."""
        xp = arithmetic(x)
        parts = xp.reshape(xp.abs(xp.cast(x, "float32")), self.parts_shape)
        magnitude = xp.max(parts, axis=self.reduced_axes, keepdims=True)
        return xp.stop_gradient(xp.reshape(magnitude, self.scale_shape))

    def best_steps(self, w):
        """Returns the steps of `scale_shape` with the least squared error for `w`, an array."""
        top = ops.convert_to_numpy(self.largest(w))
        return positive(self.best_clip(w) * top / self.spec.qmax, self.spec)

    def best_clip(self, w) -> np.ndarray:
        """Returns the fraction of the largest magnitude with the least squared error, by step.

        At 8 bits the full range is as good, and nothing is clipped.

        Args:
            w: The weight, an array.
        """
        w = np.asarray(w, np.float32).reshape(self.parts_shape)
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


def positive(scale, spec):
    """Replaces steps that are too small to divide by: the channel is zero.

    By 1; of 16 bits by that of values up to 1. In steps of 1 LiteRT's addition of 16-bit integers
    aborts: its multipliers reach 2**15 between the grids of the operands.
    """
    xp = arithmetic(scale)
    step = 1.0 if spec.num_bits <= 8 else 1.0 / spec.qmax
    return xp.where(scale > SMALLEST_SCALE, scale, step * xp.ones_like(scale))
