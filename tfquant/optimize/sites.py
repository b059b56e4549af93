"""`Site`: a linear layer whose integers are to be chosen, as matrices."""

import itertools
import math

import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfquant.configs.linear import LinearConfig
from tfquant.numerics import QuantSpec, group_scale
from tfquant.quantizers import AbsMax, LearnedStep
from tfquant.rounding.moments import Moments
from tfquant.streams import Streams
from tfquant.wrappers import QuantizeWrapper

DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
LINEAR = (layers.Dense, layers.Conv1D, layers.Conv2D, *DEPTHWISE)

# Vectors that a layer's moments are found from: so many for each input of a channel, within
# bounds, but the last number of each batch.
VECTORS_AN_INPUT, VECTORS, LEAST_VECTORS = 2**10, (2**14, 2**17), 2**9

# They are drawn from rows that have so many times as many.
SPREAD = 4

# Fractions of the largest magnitude that are tried as the range of a step.
CLIPS = np.linspace(0.3, 1.0, 36)


class Site:
    """One linear layer of a quantized model, between its float inputs and its quantized ones.

    A kernel is a stack of matrices `[groups, k, channels]`: one for a dense layer or a convolution,
    one for each channel of a depthwise convolution, one for each group of a grouped one.

    Args:
        calls: Its calls: one, or all of those in several places, which share the integers.
        streams: `Streams` that have run them in float, and in both what they read.
        settled: Whether what they read stays: it does not where integers to come change it.

    Attributes:
        wrapper: The `QuantizeWrapper`.
        weights: The float kernel, as matrices.
        wanted: Weights that an algorithm would rather round, as matrices.
        bounds: `(qmin, qmax)`.
        deviation: Standard deviation of each channel of its outputs in the float model.
    """

    def __init__(self, calls, streams: Streams, settled: bool = True):
        self.calls, self.streams, self.wrapper = calls, streams, calls[0].layer
        self.settled = settled
        ((self.variable, self.quantizer),) = self.wrapper.weight_quantizers
        spec = self.quantizer.spec
        self.bounds = spec.qmin, spec.qmax
        self.kernel = ops.convert_to_numpy(self.variable).astype(np.float64)
        first = [streams.held(node.outputs, quantized=False).array(0) for node in calls]
        deviation = np.concatenate([y.reshape(-1, y.shape[-1]) for y in first]).std(axis=0)
        self.deviation = np.maximum(deviation, 1e-3 * deviation.max(initial=0) + 1e-12)
        self.weights = self.wanted = self.to_matrices(self.kernel)

    @property
    def has_bias(self) -> bool:
        """Whether a bias, of the layer or its batch norm, can give a mean back."""
        norm = self.wrapper.batch_norm
        return norm.center if norm is not None else self.wrapper.layer.use_bias

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.wrapper.layer.name

    @property
    def _is_depthwise(self):
        return isinstance(self.wrapper.layer, DEPTHWISE)

    @property
    def _groups(self):
        return getattr(self.wrapper.layer, "groups", 1) if not self._is_depthwise else 1

    def to_matrices(self, kernel) -> np.ndarray:
        """Returns an array in the shape of the kernel as `[groups, k, channels]`."""
        if self._is_depthwise:
            *_, channels, multiplier = kernel.shape
            return np.moveaxis(kernel.reshape(-1, channels, multiplier), 1, 0)
        rows = kernel.reshape(-1, kernel.shape[-1])
        return np.moveaxis(rows.reshape(len(rows), self._groups, -1), 1, 0)

    def to_kernel(self, matrices) -> np.ndarray:
        """Returns matrices in the shape of the kernel."""
        return np.moveaxis(matrices, 0, 1).reshape(self.kernel.shape)

    def sums(self, x, weights) -> np.ndarray:
        """Returns `x @ weights` for `x` `[groups, k]`, flat: one number for each channel."""
        return np.einsum("gk,gkc->gc", x, weights).reshape(-1)

    def by_step(self, channels) -> np.ndarray:
        """Returns `[groups, channels]` numbers in the shape of the quantizer's steps."""
        if math.prod(self.quantizer.scale_shape) == 1:
            return channels.mean().reshape(self.quantizer.scale_shape)
        return channels.reshape(self.quantizer.scale_shape)

    def spread(self, steps) -> np.ndarray:
        """Returns steps in the shape of the quantizer's, one for each weight, as matrices."""
        spread = ops.convert_to_numpy(self.quantizer.spread(np.float32(steps)))
        return self.to_matrices(np.broadcast_to(spread, self.kernel.shape).astype(np.float64))

    def best_steps(self, weights, importance) -> np.ndarray:
        """Returns the steps with the least squared error of rounding to the nearest.

        Args:
            weights: Matrices.
            importance: Of each input, `[groups, k]`: the diagonal of a Hessian.

        Returns:
            Array in the shape of the quantizer's steps.
        """
        q, w = self.quantizer, self.to_kernel(weights).astype(np.float32)
        h = np.broadcast_to(importance[:, :, None], weights.shape)
        h = self.to_kernel(h / (importance.mean() or 1.0)).astype(np.float32)
        largest = ops.convert_to_numpy(q.largest(w))
        best, least = None, None
        for clip in CLIPS if q.spec.num_bits < 8 else (1.0,):
            steps = np.maximum(largest * np.float32(clip / q.spec.qmax), 1e-12)
            steps = np.asarray(group_scale(steps)) if q.grouped else steps
            s = np.broadcast_to(ops.convert_to_numpy(q.spread(steps)), w.shape)
            d = h * (s * np.clip(np.rint(w / s), *self.bounds) - w) ** 2
            found = d.reshape(q.parts_shape).sum(q.reduced_axes).reshape(q.scale_shape)
            if best is None:
                best, least = steps, found
            best, least = np.where(found < least, steps, best), np.minimum(found, least)
        return best

    def patches(self, x) -> np.ndarray:
        """Returns what the kernel is multiplied by, `[groups, count, k]`."""
        layer = self.wrapper.layer
        if not isinstance(layer, layers.Dense):
            x = _patches(layer, tf.convert_to_tensor(x))
        x = np.asarray(x).reshape(-1, x.shape[-1])
        if self._is_depthwise:
            channels = self.kernel.shape[-2]
            return np.moveaxis(x.reshape(len(x), -1, channels), 2, 0)
        if self._groups == 1:
            return x[None]
        x = x.reshape(len(x), -1, self._groups, self.kernel.shape[-2])
        return np.moveaxis(x, 2, 0).reshape(self._groups, len(x), -1)

    def moments(self, rng) -> list[Moments]:
        """Returns the moments of even and of odd batches; of one alone, twice the same.

        Positions of one row are much alike: of many, some are drawn.
        """
        count = self.streams.batches
        most = int(np.clip(VECTORS_AN_INPUT * self.weights.shape[1], *VECTORS))
        most = max(LEAST_VECTORS, most // count) // len(self.calls)

        def pair(batch, node):
            x = node.args[0]  # A mask may stand behind it.
            both = [self.streams.held(x, which).array(batch) for which in (True, False)]
            rows = len(both[0])
            positions = math.prod(node.outputs.shape[1:-1])
            wanted = -(-SPREAD * most // max(positions, 1))
            if wanted < rows:  # Patches of few rows take less time than those of all.
                chosen = np.sort(rng.choice(rows, wanted, replace=False))
                both = [x[chosen] for x in both]
            found = [self.patches(x) for x in both]
            if found[0].shape[1] > most:
                chosen = np.sort(rng.choice(found[0].shape[1], most, replace=False))
                found = [v[:, chosen] for v in found]
            return found

        halves = [range(0, count, 2), range(1 if count > 1 else 0, count, 2)]
        pairs = (itertools.starmap(pair, itertools.product(half, self.calls)) for half in halves)
        return [Moments.of(found) for found in pairs]

    def give(self, integers, steps) -> None:
        """Gives the layer integers, matrices, of `steps` in the shape of the quantizer's."""
        self.wrapper.give_integers(self.to_kernel(integers), steps)


def why_not(wrapper) -> str:
    """Returns why no integers can be chosen for what a `QuantizeWrapper` wraps; else nothing."""
    layer, config = wrapper.layer, wrapper.quantize_config
    if not isinstance(config, LinearConfig) or type(layer) not in LINEAR:
        return f"{type(layer).__name__} is no dense layer or convolution of one or two dimensions"
    if not isinstance(config.weights, QuantSpec):
        return "its weights become no integers"
    ((_, quantizer),) = wrapper.weight_quantizers
    if not isinstance(quantizer, AbsMax | LearnedStep):
        return f"steps cannot be given to its quantizer, {type(quantizer).__name__}"
    return ""


def has_weights(node) -> bool:
    """Whether a call is of a wrapper whose weights become integers."""
    wrapper = node.layer
    return isinstance(wrapper, QuantizeWrapper) and any(
        isinstance(getattr(q, "spec", None), QuantSpec) for _, q in wrapper.weight_quantizers
    )


def _patches(layer, x):
    """Returns what the kernel of a convolution sees at each position, flat, inputs last."""
    size, strides, rates = layer.kernel_size, layer.strides, layer.dilation_rate
    padding = layer.padding.upper()
    if isinstance(layer, layers.Conv1D | layers.DepthwiseConv1D):
        if padding == "CAUSAL":
            x = tf.pad(x, [[0, 0], [rates[0] * (size[0] - 1), 0], [0, 0]])
            padding = "VALID"
        x = x[:, None]
        size, strides, rates = ((1, *v) for v in (size, strides, rates))
    if tuple(size) == (1, 1):
        return x[:, :: strides[0], :: strides[1]]
    return tf.image.extract_patches(
        x, (1, *size, 1), (1, *strides, 1), (1, *rates, 1), padding=padding
    )
