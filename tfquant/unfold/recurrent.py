"""Recurrent layers, unrolled into the kernels of every time step.

LiteRT has no recurrent kernel for what Keras 3 converts to (a WHILE loop over float tensors, whose
inside no calibrator sees). Unrolled, each step is a handful of integer kernels; all steps share
their weights and, for each kernel, one grid.

The state has 8 bits where it is multiplied by weights. What is added up from step to step, and what
decides about it, has 16: inputs, gates, state. The fused LSTM of the TFLite 8-bit quantization
specification has 16-bit gates and state too: they are rounded at every step, and errors add up.
"""

import logging

import keras
import numpy as np
from keras import layers

from tfquant.configs.elementwise import OutputConfig, ProductConfig, SameGridConfig, SumConfig
from tfquant.graph.read import read
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.layers.parts import Affine, Constant, Scale, Split, Stack, Unstack
from tfquant.registry import schemes
from tfquant.registry.keras_layers import activation_config, linear_config
from tfquant.wrappers import QuantizeAnnotate

_logger = logging.getLogger("tfquant")

# A longer sequence makes a file of operators, not of weights.
MAX_STEPS = 256


def unfold_recurrent(layer, scheme):
    """Unrolls an LSTM, GRU, SimpleRNN, ConvLSTM1D or ConvLSTM2D, or an RNN of cells.

    See `tfquant.unfold.unfold`.

    `recurrent_dropout` is not applied in training. A cell of your own is read as a composite layer
    is. A layer with more than `MAX_STEPS` or an unknown number of steps stays whole. A stateful
    layer starts from zeros at every call, and a warning says so.
    """
    convolutional = type(layer) in _CONVOLUTIONS
    if convolutional and layer.cell.data_format != "channels_last":
        return None
    cells = getattr(layer.cell, "cells", [layer.cell])
    own = not convolutional and any(type(cell) not in _CELLS for cell in cells)
    if own and len(cells) > 1:
        return None
    if layer.stateful:
        _logger.warning(
            "Layer '%s' is stateful; quantized it starts from zeros at every call. To carry the "
            "state on, make it an input and an output (initial_state, return_state).",
            layer.name,
        )
    if own:
        return _unfold_own_cell(layer, scheme)
    names = [layer.name] if len(cells) == 1 else [f"{layer.name}_{cell.name}" for cell in cells]
    cells = [
        (_ConvLstm if convolutional else _CELLS[type(cell)])(cell, name, scheme, layer.trainable)
        for cell, name in zip(cells, names, strict=True)
    ]

    def call(sequences, initial_state=None, mask=None, training=None):
        del training
        if sequences.shape[1] is None or sequences.shape[1] > MAX_STEPS:
            return None
        if len(cells) > 1 and (layer.return_state or initial_state is not None):
            return None  # States of stacked cells are nested.
        if mask is not None and convolutional:
            return None
        order = slice(None, None, -1 if layer.go_backwards else 1)
        kept = [None] * sequences.shape[1] if mask is None else cells[0].masks(mask)[order]
        for number, cell in enumerate(cells):
            state = [None] * cell.num_states if initial_state is None else _list(initial_state)
            outputs = []
            for x, keep in zip(cell.inputs(sequences)[order], kept, strict=True):
                state = cell.masked(cell.step(x, state), state, keep)
                outputs.append(state[0])
            if number < len(cells) - 1:
                sequences, order = cell.stack(outputs), slice(None)
        if mask is not None and layer.zero_output_for_mask:
            outputs = [cell.hide(y, keep) for y, keep in zip(outputs, kept, strict=True)]
        y = cell.stack(outputs) if layer.return_sequences else outputs[-1]
        return [y, *state] if layer.return_state else y

    return call


def _unfold_own_cell(layer, scheme):
    """Calls what the cell consists of at every step, which shares its weights."""
    parts, config = _Parts(layer.name, scheme), OutputConfig(scheme.activations)

    def zeros(size, number, like):
        values = np.zeros((1, *(size if isinstance(size, (list, tuple)) else [size])), np.float32)
        start = Constant.of(values, False, f"{layer.name}_start_{number}")
        return QuantizeAnnotate(start, config)(like)

    def call(sequences, initial_state=None, mask=None, training=None):
        del training
        if mask is not None or sequences.shape[1] is None or sequences.shape[1] > MAX_STEPS:
            return None
        steps = parts.unstack("steps", sequences)[:: -1 if layer.go_backwards else 1]
        if initial_state is None:
            sizes = enumerate(_list(layer.cell.state_size))
            state = [zeros(size, number, steps[0]) for number, size in sizes]
        else:
            state = _list(initial_state)
        inputs = [keras.Input(batch_shape=x.shape) for x in (steps[0], *state)]
        try:
            y, new = read(layer.cell, (inputs[0], inputs[1:]), {})
        except Exception as error:  # Whatever the user's code raises on symbolic tensors.
            _logger.debug("The cell of '%s' cannot be read: %s", layer.name, error)
            return None
        cell = keras.Model(inputs, [y, *_list(new)], name=f"{layer.name}_cell")
        outputs = []
        for x in steps:
            y, *state = cell([x, *state])
            outputs.append(y)
        y = parts.stack(outputs) if layer.return_sequences else outputs[-1]
        return [y, *state] if layer.return_state else y

    return call if scheme.static else None


def unfold_time_distributed(layer, scheme):
    """Calls the layer inside a `TimeDistributed` on every step; see `tfquant.unfold.unfold`.

    A composite layer inside, one that treats masks or trains on statistics stays whole.
    """
    inner = layer.layer
    if isinstance(inner, (keras.Model, layers.BatchNormalization, layers.RNN)):
        return None
    parts = _Parts(layer.name, scheme, layer.trainable)

    def call(sequences, mask=None, training=None):
        del training
        if mask is not None or sequences.shape[1] is None or sequences.shape[1] > MAX_STEPS:
            return None
        copy = copy_layer(inner, name=f"{layer.name}_{inner.name}")
        part = QuantizeAnnotate(copy)
        if type(inner) is layers.Dense:
            y = part(sequences)
        else:
            y = parts.stack([part(x) for x in parts.unstack("unstack", sequences)])
        transfer_weights(inner, copy)
        return y

    return call


def unfold_bidirectional(layer, scheme):
    """Unrolls both directions of a `Bidirectional`; see `tfquant.unfold.unfold`."""
    directions = [unfold_recurrent(x, scheme) for x in (layer.forward_layer, layer.backward_layer)]
    merge = {
        "concat": lambda: layers.Concatenate(name=f"{layer.name}_concat"),
        "sum": lambda: layers.Add(name=f"{layer.name}_sum"),
        "ave": lambda: layers.Average(name=f"{layer.name}_average"),
        "mul": lambda: layers.Multiply(name=f"{layer.name}_product"),
    }.get(layer.merge_mode)
    if None in directions or merge is None:
        return None
    merge, parts = QuantizeAnnotate(merge()), _Parts(f"{layer.name}_backward", scheme)

    def call(sequences, initial_state=None, mask=None, training=None):
        del training
        halves = [None, None]
        if initial_state is not None:
            count = len(initial_state) // 2
            halves = initial_state[:count], initial_state[count:]
        results = [f(sequences, half, mask) for f, half in zip(directions, halves, strict=True)]
        if None in results:
            return None
        (forward, *states), (backward, *more) = map(_list, results)
        if layer.return_sequences:
            backward = parts.reverse(backward)
        y = merge([forward, backward])
        return [y, *states, *more] if layer.return_state else y

    return call


class _Parts:
    """Makes the layers of one recurrent layer, each marked and called at every step.

    Args:
        name: Prefix of their names.
        scheme: `Scheme`.
        trainable: Whether their weights train.
    """

    def __init__(self, name, scheme, trainable=True):
        self.name, self.scheme, self.trainable = name, scheme, trainable
        self.narrow = scheme.activations
        self.wide_scheme = schemes.get("w8a16")
        self.wide = self.wide_scheme.activations
        self.made = {}

    def _make(self, name, make, config=None):
        """Returns the part `name`, made at its first use."""
        if name not in self.made:
            self.made[name] = QuantizeAnnotate(
                make(name=f"{self.name}_{name}"), config if self.scheme.static else None
            )
        return self.made[name]

    def dense(self, name, kernel, bias, x, config=None):
        """Multiplies `x` by weights."""

        def make(name):
            dense = layers.Dense(
                kernel.shape[1], use_bias=bias is not None, trainable=self.trainable, name=name
            )
            dense.build((None, kernel.shape[0]))
            dense.set_weights([kernel] if bias is None else [kernel, bias])
            return dense

        return self._make(name, make, config)(x)

    def convolution(self, name, kernel, bias, x, settings, config=None):
        """Convolves images, or sequences, with weights."""
        make_layer = {3: layers.Conv1D, 4: layers.Conv2D}[kernel.ndim]

        def make(name):
            layer = make_layer(
                kernel.shape[-1],
                kernel.shape[:-2],
                use_bias=bias is not None,
                trainable=self.trainable,
                name=name,
                **settings,
            )
            layer.build((None, *x.shape[1:]))
            layer.set_weights([kernel] if bias is None else [kernel, bias])
            return layer

        return self._make(name, make, config)(x)

    def add(self, name, a, b):
        """Adds in 16 bits."""
        return self._make(name, layers.Add, SumConfig(self.wide))([a, b])

    def subtract(self, name, a, b):
        """Subtracts in 16 bits."""
        return self._make(name, layers.Subtract, SumConfig(self.wide, sign=-1))([a, b])

    def multiply(self, name, a, b):
        """Multiplies in 16 bits."""
        return self._make(name, layers.Multiply, ProductConfig(self.wide))([a, b])

    def activation(self, name, function, x):
        """Applies an activation in 16 bits."""
        make = lambda name: layers.Activation(function, name=name)  # noqa: E731
        return self._make(name, make, activation_config(function, self.wide_scheme))(x)

    def split(self, name, sizes, x):
        """Cuts `x`, in 16 bits."""
        make = lambda name: Split(sizes, name=name)  # noqa: E731
        return self._make(name, make, SameGridConfig(self.wide))(x)

    def unstack(self, name, x, activations=None):
        """Takes a sequence apart."""
        return _list(self._make(name, Unstack, SameGridConfig(activations))(x))

    def stack(self, steps):
        """Puts time steps together, in 8 bits."""
        return self._make("stack", Stack, SameGridConfig(self.narrow))(steps)

    def reverse(self, x):
        """Turns a sequence around."""
        steps = self.unstack("unstack", x)
        return self._make("stack", Stack, SameGridConfig(self.narrow))(steps[::-1])

    def scale(self, name, x, factor):
        """Multiplies by constants in 16 bits."""

        def make(name):
            scale = Scale(trainable=self.trainable, name=name)
            scale.build(factor.shape)
            scale.set_weights([factor])
            return scale

        return self._make(name, make, OutputConfig(self.wide))(x)

    def masks(self, mask):
        """Returns what new states of each step are multiplied by: 1, or 0 where it is masked."""
        make = lambda name: layers.Reshape((mask.shape[1], 1), name=name)  # noqa: E731
        x = self._make("mask", Affine, OutputConfig(self.narrow))(mask)
        return self.unstack("mask_steps", self._make("mask_column", make)(x))

    def hide(self, x, keep):
        """Returns zeros where a step is masked."""
        return self.multiply("hidden", x, keep)

    def masked(self, new, old, keep):
        """Returns the old states where a step is masked, `old + keep * (new - old)`."""
        if keep is None:
            return new
        return [self._kept(i, a, b, keep) for i, (a, b) in enumerate(zip(new, old, strict=True))]

    def _kept(self, i, new, old, keep):
        if old is None:
            return self.multiply(f"first{i}", new, keep)
        change = self.multiply(f"change{i}", self.subtract(f"difference{i}", new, old), keep)
        return self.add(f"state{i}", old, change)


class _Cell(_Parts):
    """What one time step of a recurrent layer computes."""

    num_states = 1

    def __init__(self, cell, name, scheme, trainable):
        super().__init__(name, scheme, trainable)
        self.cell, self.units = cell, getattr(cell, "units", None) or cell.filters
        self.activation_function = cell.activation
        self.recurrent_function = getattr(cell, "recurrent_activation", None)
        self.kernel, self.recurrent_kernel = cell.kernel.numpy(), cell.recurrent_kernel.numpy()
        self.bias = cell.bias.numpy() if cell.use_bias else None

    def columns(self, weights, *gates):
        """Returns the columns of `weights` that belong to the gates of those numbers."""
        if weights is None:
            return None
        return np.concatenate([np.split(weights, self.num_gates, -1)[i] for i in gates], -1)

    def project(self, name, x, *gates):
        """Multiplies a sequence by the kernels of some gates; returns its time steps."""
        bias = self.bias
        if bias is not None and bias.ndim == 2:
            # Both biases are added to z and r; that of the candidate is added behind the reset.
            bias = bias[0] + np.where(np.arange(bias.shape[1]) < 2 * self.units, bias[1], 0)
        kernel, bias = self.columns(self.kernel, *gates), self.columns(bias, *gates)
        operator = "FULLY_CONNECTED" if kernel.ndim == 2 else "CONV_2D"
        config = linear_config(self.wide_scheme, "kernel", -1, operator)
        y = self.dense(name, kernel, bias, x, config)
        return self.unstack(f"{name}_steps", y)

    def recur(self, name, h, *gates):
        """Multiplies the state by the recurrent kernels of some gates."""
        separate = self.bias is not None and self.bias.ndim == 2 and gates == (2,)
        bias = self.columns(self.bias[1], *gates) if separate else None
        kernel = self.columns(self.recurrent_kernel, *gates)
        return self.dense(name, kernel, bias, h)


class _Lstm(_Cell):
    """`c = f * c + i * g;  h = o * tanh(c)` (Keras's gates: i, f, g, o)."""

    num_gates, num_states = 4, 2

    def inputs(self, x):
        return self.project("input", x, 0, 1, 3, 2)

    def step(self, x, state):
        h, c = state
        z = x
        if h is not None:
            z = self.add("gates", x, self.recur("recurrent", h, 0, 1, 3, 2))
        z, g = self.split("split", (3 * self.units, self.units), z)
        z = self.activation("gate", self.recurrent_function, z)
        i, f, o = self.split("gate_split", (self.units,) * 3, z)
        g = self.activation("candidate", self.activation_function, g)
        new = self.multiply("write", i, g)
        c = new if c is None else self.add("cell", self.multiply("keep", f, c), new)
        return [
            self.multiply("output", o, self.activation("squash", self.activation_function, c)),
            c,
        ]


class _ConvLstm(_Lstm):
    """An LSTM of images, or of sequences, whose products are convolutions."""

    def inputs(self, x):
        kernel, bias = (self.columns(w, 0, 1, 3, 2) for w in (self.kernel, self.bias))
        settings = {n: getattr(self.cell, n) for n in ("strides", "padding", "dilation_rate")}
        operator = "FULLY_CONNECTED" if kernel.ndim == 2 else "CONV_2D"
        config = linear_config(self.wide_scheme, "kernel", -1, operator)
        return [
            self.convolution("input", kernel, bias, step, settings, config)
            for step in self.unstack("steps", x, self.wide)
        ]

    def recur(self, name, h, *gates):
        kernel = self.columns(self.recurrent_kernel, *gates)
        return self.convolution(name, kernel, None, h, {"padding": "same"})


class _Gru(_Cell):
    """`h = g + z * (h - g)` (Keras's gates: z, r, g)."""

    num_gates = 3

    def inputs(self, x):
        gates, candidate = self.project("input", x, 0, 1), self.project("input_candidate", x, 2)
        return list(zip(gates, candidate, strict=True))

    def step(self, x, state):
        (h,) = state
        x, x_candidate = x
        reset_after = self.cell.reset_after
        z = x if h is None else self.add("gates", x, self.recur("recurrent", h, 0, 1))
        z = self.activation("gate", self.recurrent_function, z)
        z, r = self.split("gate_split", (self.units,) * 2, z)
        g = x_candidate
        if h is not None and reset_after:
            reset = self.multiply("reset", r, self.recur("recurrent_candidate", h, 2))
            g = self.add("candidate_sum", g, reset)
        elif reset_after and self.bias is not None:
            reset = self.scale("start_reset", r, self.columns(self.bias[1], 2))
            g = self.add("candidate_sum", g, reset)
        elif h is not None:
            reset = self.recur("recurrent_candidate", self.multiply("reset", r, h), 2)
            g = self.add("candidate_sum", g, reset)
        g = self.activation("candidate", self.activation_function, g)
        if h is None:
            return [self.subtract("start", g, self.multiply("start_keep", z, g))]
        change = self.multiply("keep", z, self.subtract("difference", h, g))
        return [self.add("state", g, change)]


class _Simple(_Cell):
    """`h = tanh(x @ kernel + h @ recurrent_kernel + bias)`."""

    num_gates = 1

    def inputs(self, x):
        return self.project("input", x, 0)

    def step(self, x, state):
        (h,) = state
        z = x if h is None else self.add("gates", x, self.recur("recurrent", h, 0))
        return [self.activation("state", self.activation_function, z)]


_CELLS = {layers.LSTMCell: _Lstm, layers.GRUCell: _Gru, layers.SimpleRNNCell: _Simple}

# Layers whose cells convolve. LiteRT's kernels of volumes are float.
_CONVOLUTIONS = (layers.ConvLSTM1D, layers.ConvLSTM2D)


def _list(x):
    return list(x) if isinstance(x, (list, tuple)) else [x]
