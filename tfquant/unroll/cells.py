"""What one time step of each recurrent layer computes."""

import numpy as np
from keras import layers

from tfquant.registry.keras_layers import linear_config
from tfquant.unroll.steps import Steps


class Cell(Steps):
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

    def wide_config(self, kernel):
        """Returns the config of a product that is summed up in 16 bits."""
        operator = "FULLY_CONNECTED" if kernel.ndim == 2 else "CONV_2D"
        return linear_config(self.wide_scheme, "kernel", -1, operator)

    def project(self, name, x, *gates):
        """Multiplies a sequence by the kernels of some gates; returns its time steps."""
        bias = self.bias
        if bias is not None and bias.ndim == 2:
            # Both biases are added to z and r; that of the candidate is added behind the reset.
            bias = bias[0] + np.where(np.arange(bias.shape[1]) < 2 * self.units, bias[1], 0)
        kernel, bias = self.columns(self.kernel, *gates), self.columns(bias, *gates)
        y = self.dense(name, kernel, bias, x, self.wide_config(kernel))
        return self.unstack(f"{name}_steps", y)

    def recur(self, name, h, *gates):
        """Multiplies the state by the recurrent kernels of some gates."""
        separate = self.bias is not None and self.bias.ndim == 2 and gates == (2,)
        bias = self.columns(self.bias[1], *gates) if separate else None
        kernel = self.columns(self.recurrent_kernel, *gates)
        return self.dense(name, kernel, bias, h)


class Lstm(Cell):
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


class ConvLstm(Lstm):
    """An LSTM of images, or of sequences, whose products are convolutions."""

    def inputs(self, x):
        kernel, bias = (self.columns(w, 0, 1, 3, 2) for w in (self.kernel, self.bias))
        settings = {n: getattr(self.cell, n) for n in ("strides", "padding", "dilation_rate")}
        config = self.wide_config(kernel)
        return [
            self.convolution("input", kernel, bias, step, settings, config)
            for step in self.unstack("steps", x, self.wide)
        ]

    def recur(self, name, h, *gates):
        kernel = self.columns(self.recurrent_kernel, *gates)
        return self.convolution(name, kernel, None, h, {"padding": "same"})


class Gru(Cell):
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


class Simple(Cell):
    """`h = tanh(x @ kernel + h @ recurrent_kernel + bias)`."""

    num_gates = 1

    def inputs(self, x):
        return self.project("input", x, 0)

    def step(self, x, state):
        (h,) = state
        z = x if h is None else self.add("gates", x, self.recur("recurrent", h, 0))
        return [self.activation("state", self.activation_function, z)]


CELLS = {layers.LSTMCell: Lstm, layers.GRUCell: Gru, layers.SimpleRNNCell: Simple}
