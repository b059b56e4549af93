"""Rounding that is learned: each weight goes up or down as the outputs of a block ask for."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from keras import ops, tree

from tfquant.optimize.block import gain_of_norm, offset_of, shift_bias
from tfquant.streams import call
from tfquant.wrappers import Quantize, QuantizeWrapper
from tfquant.wrappers.wrapper import clamp

# The sigmoid is stretched to these ends and clipped, so that it reaches 0 and 1.
ZETA, GAMMA = 1.1, -0.1

# A start that is nearer to a whole number than this cannot be moved by learning.
LEAST_REST = 0.05

# What a step of the optimizer moves biases and gains by, where it moves a rounding by 1: shares of
# the deviation of a channel, and of 1.
SHIFT_UNIT, GAIN_UNIT = 0.05, 0.05

# Share of the learning rate in the end: what is undecided by then has still to move.
LAST_RATE = 0.3

# Rows that nothing is learned from, to see whether learning helped: one in so many.
JUDGED = 4


@dataclasses.dataclass(frozen=True)
class Options:
    """How rounding is learned.

    Attributes:
        steps: Steps of the optimizer for a block.
        batch_size: Rows of a step.
        rate: Learning rate.
        rounding_weight: Weight of the loss that ends rounding in whole numbers, at first.
        growth: How many times that weight grows until the end.
        beta: Its exponent at first and in the end.
        warm_up: Share of the steps without it.
        drop: Share of the inputs that are the float model's.
    """

    steps: int
    batch_size: int
    rate: float
    rounding_weight: float
    growth: float
    beta: tuple[float, float]
    warm_up: float
    drop: float


class SoftLayer:
    """A linear layer whose integers are between whole numbers while they are learned.

        q = clip(floor(v) + h(a), qmin, qmax),   h(a) = clip(1.2 sigmoid(a) - 0.1, 0, 1)
        y = gain * (x * q steps) + shift

    Nagel et al. 2020, arXiv:2004.10568, section 3.2; gain and shift beside it, one a channel.

    Args:
        site: `Site` that has integers already.
    """

    def __init__(self, site):
        self.site, self.wrapper = site, site.wrapper
        kernel = ops.convert_to_numpy(site.variable).astype(np.float64)
        self.steps = ops.convert_to_numpy(site.quantizer.steps(site.variable.value))
        spread_steps = site.spread(self.steps)
        self.integers = np.rint(site.to_matrices(kernel) / spread_steps)
        offset = np.clip(site.wanted / spread_steps - self.integers, -0.5, 0.5)
        latent = self.integers + offset * (1 - 2 * LEAST_REST)
        self.floor = np.floor(latent)
        self.learns = site.quantizer.spec.num_bits < 8
        as_kernel = lambda x: tf.constant(site.to_kernel(x), tf.float32)  # noqa: E731
        rest = np.clip(latent - self.floor, LEAST_REST, 1 - LEAST_REST)
        alpha = -np.log((ZETA - GAMMA) / (rest - GAMMA) - 1)
        self.alpha = tf.Variable(as_kernel(alpha), trainable=self.learns)
        self._floor, self._steps = as_kernel(self.floor), as_kernel(spread_steps)
        self._hard = as_kernel(self.integers)
        channels = site.weights.shape[0] * site.weights.shape[2]
        self.gain, self.shift = (tf.Variable(tf.zeros(channels)) for _ in range(2))
        self._unit = tf.constant(SHIFT_UNIT * site.deviation, tf.float32)
        self._fold = tf.constant(gain_of_norm(site), tf.float32)
        self._offset = tf.constant(offset_of(site), tf.float32)

    @property
    def variables(self) -> list:
        """What is learned."""
        gain = [] if self.site.quantizer.grouped else [self.gain]
        shift = [self.shift] if self.site.has_bias else []
        return [*([self.alpha] if self.learns else []), *gain, *shift]

    def up(self):
        """Returns how far each weight is on its way up, 0 to 1."""
        return tf.clip_by_value(tf.sigmoid(self.alpha) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)

    def indecision(self, beta):
        """Returns the mean over weights of `1 - |2 h - 1|^beta`."""
        if not self.learns:
            return 0.0
        return tf.reduce_mean(1 - tf.abs(2 * self.up() - 1) ** beta)

    def __call__(self, x, mode: str):
        """Returns the layer's outputs on real inputs, batch norm folded.

        Args:
            x: Inputs.
            mode: `"soft"`; `"hard"`, decided; or `"start"`, with the integers it began with.
        """
        q, (low, high) = self._hard, self.site.bounds
        if self.learns and mode != "start":
            up = self.up() if mode == "soft" else tf.cast(self.up() >= 0.5, tf.float32)
            q = tf.clip_by_value(self._floor + up, low, high)
        layer = self.wrapper.layer
        swapped = [(self.site.variable, q * self._steps)]
        if layer.use_bias:
            swapped.append((layer.bias, tf.zeros(layer.bias.shape)))
        with keras.StatelessScope(state_mapping=swapped, initialize_variables=False):
            y = layer.call(x)
        if mode == "start":
            return y * self._fold + self._offset
        gain = self._fold * (1 + GAIN_UNIT * self.gain)
        return y * gain + self._offset + self._unit * self.shift

    def settle(self) -> None:
        """Gives the layer what was learned."""
        up = self.site.to_matrices(self.up().numpy() >= 0.5)
        q = np.clip(self.floor + up, *self.site.bounds) if self.learns else self.integers
        gain, steps = 1 + GAIN_UNIT * self.gain.numpy(), self.steps
        if not self.site.quantizer.grouped:
            # What is in front of the bias alone is scaled, not what stands behind it.
            by_channel = gain.reshape(self.site.weights.shape[0], -1)
            steps = (steps * self.site.by_step(by_channel)).astype(np.float32)
        self.site.give(q, steps)
        shift_bias(self.site, (self._unit * self.shift).numpy())


class SoftBlock:
    """The calls of a block, with gradients.

    Args:
        block: `Block`.
        layers: `SoftLayer` of each layer that learns.
    """

    def __init__(self, block, layers):
        self.block, self.layers = block, layers

    def __call__(self, inputs, mode: str):
        """Returns the outputs for tensors in the order of the block's inputs."""
        values = dict(zip(self.block.inputs, inputs, strict=True))
        value = lambda x: values[x] if isinstance(x, keras.KerasTensor) else x  # noqa: E731
        for node in self.block.nodes:
            args, kwargs = tree.map_structure(value, (node.args, node.kwargs))
            found = tree.flatten(self._call(node, args, kwargs, mode))
            values.update(zip(tree.flatten(node.outputs), found, strict=True))
        return [values[x] for x in self.block.outputs]

    def _call(self, node, args, kwargs, mode):
        layer, kwargs = node.layer, dict(kwargs)
        if isinstance(layer, Quantize):
            return layer.quantizer.still(args[0]) if layer.quantizes else args[0]
        if not isinstance(layer, QuantizeWrapper) or not layer.quantizes:
            return call(layer, args, kwargs)
        mask = kwargs.pop("mask", None)
        if layer.layer_takes_mask and any(m is not None for m in tree.flatten(mask)):
            kwargs["mask"] = mask[0] if isinstance(mask, tuple) and len(mask) == 1 else mask
        place = kwargs.pop("call_site", 0)
        if layer in self.layers:
            y = self.layers[layer](args[0], mode)
        else:
            y = layer.float_call(*args, training=False, **kwargs)
        y, quantizers = clamp(y, layer.call_sites[place].clamp), layer.output_quantizers[place]
        if not quantizers:
            return y
        flat = zip(tree.flatten(y), quantizers, strict=True)
        return [x if q is None else q.still(x) for x, q in flat]


def learn(block, options: Options) -> None:
    """Learns the roundings of a block whose layers have integers, and gives them what was learned.

    The outputs of the block are to be those of the float model:

        |y - y_float|^2 / |y_start - y_float|^2  +  weight * mean(1 - |2 h - 1|^beta)

    so that weight and rate mean the same for every block. The weight grows until all is decided:
    one that is enough for that in the end keeps weights from choosing at the beginning. On rows
    that nothing was learned from, the learned roundings must serve better than those that they
    began with, or these stay.

    Args:
        block: `Block`.
        options: `Options`.
    """
    streams = block.streams
    soft = SoftBlock(block, {site.wrapper: SoftLayer(site) for site in block.sites})
    layers = list(soft.layers.values())
    if not any(layer.learns for layer in layers):
        return
    order = block.rng.permutation(streams.rows)
    judged, rows = np.split(order, [max(1, streams.rows // JUDGED)])
    data = _Rows(block, options.drop)
    before = _error(soft, data, judged, options.batch_size, "start")
    _descend(soft, data, rows, options, max(before, 1e-30), block)
    if _error(soft, data, judged, options.batch_size, "hard") < before:
        for layer in layers:
            layer.settle()


def _descend(soft, data, rows, options, size, block):
    layers = list(soft.layers.values())
    variables = [v for layer in layers for v in layer.variables]
    slots = [(tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in variables]

    def step(inputs, targets, beta, weight, rate, number):
        with tf.GradientTape() as tape:
            outputs = soft(inputs, "soft")
            loss = sum(
                tf.reduce_mean((y - t) ** 2) for y, t in zip(outputs, targets, strict=True)
            ) / (size * len(outputs))
            loss += weight * sum(layer.indecision(beta) for layer in layers) / len(layers)
        _adam(variables, tape.gradient(loss, variables), slots, rate, number)
        return loss

    # Of one signature: TensorFlow takes functions of several blocks for one that is traced again.
    step, traced = tf.function(step), None
    warm = int(options.warm_up * options.steps)
    for number in range(options.steps):
        chosen = block.rng.choice(rows, min(options.batch_size, len(rows)), replace=False)
        inputs, targets = data(chosen, block.rng)
        share = max(0.0, (number - warm) / max(options.steps - warm, 1))
        beta = options.beta[0] + (options.beta[1] - options.beta[0]) * share
        weight = options.rounding_weight * options.growth**share if number >= warm else 0.0
        cosine = 0.5 * (1 + np.cos(np.pi * number / options.steps))
        rate = options.rate * (LAST_RATE + (1 - LAST_RATE) * cosine)
        numbers = [tf.constant(v, tf.float32) for v in (beta, weight, rate, number + 1.0)]
        arguments = inputs, targets, *numbers
        traced = traced or step.get_concrete_function(*arguments)
        traced(*arguments)
        if number % 20 == 0:
            block.tick(number / options.steps)


def _adam(variables, gradients, slots, rate, number):
    """Takes a step of Adam (Kingma and Ba 2014, arXiv:1412.6980, algorithm 1)."""
    correction = tf.sqrt(1 - 0.999**number) / (1 - 0.9**number)
    for variable, gradient, (mean, square) in zip(variables, gradients, slots, strict=True):
        mean.assign(0.9 * mean + 0.1 * gradient)
        square.assign(0.999 * square + 0.001 * gradient**2)
        variable.assign_sub(rate * correction * mean / (tf.sqrt(square) + 1e-8))


class _Rows:
    """Rows of what goes into a block, and of what the float model makes of them."""

    def __init__(self, block, drop):
        self.block, self.drop = block, drop

    def __call__(self, rows, rng=None):
        """Returns inputs and targets; some inputs are the float model's where chance comes in."""
        inputs = [self._input(x, rows, rng) for x in self.block.inputs]
        return inputs, [self._rows(x, rows, False) for x in self.block.outputs]

    def _rows(self, x, rows, quantized):
        return tf.constant(self.block.streams.held(x, quantized).rows(rows))

    def _input(self, x, rows, rng):
        quantized = self._rows(x, rows, True)
        if rng is None or not self.drop or not quantized.dtype.is_floating:
            return quantized
        dropped = rng.random(quantized.shape, np.float32) < self.drop
        return tf.where(dropped, self._rows(x, rows, False), quantized)


def _error(soft, data, rows, batch_size, mode):
    """Returns the mean squared error of the outputs, their mean over several."""
    forward = None
    size = min(batch_size, len(rows))
    errors = []
    for start in range(0, len(rows) - size + 1, size):  # All of one shape: traced once.
        inputs, targets = data(rows[start : start + size])
        if forward is None:
            forward = tf.function(lambda inputs: soft(inputs, mode)).get_concrete_function(inputs)
        pairs = zip(forward(inputs), targets, strict=True)
        errors += [float(tf.reduce_mean((y - t) ** 2)) for y, t in pairs]
    return sum(errors) / len(errors)
