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

from tfquant.configs.elementwise import OutputConfig
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.layers.parts import Constant
from tfquant.reading.read import read
from tfquant.unroll.cells import CELLS, ConvLstm
from tfquant.unroll.steps import Steps, as_list
from tfquant.wrappers import QuantizeAnnotate

_logger = logging.getLogger("tfquant")

# A longer sequence makes a file of operators, not of weights.
MAX_STEPS = 256

# Layers whose cells convolve. LiteRT's kernels of volumes are float.
CONVOLUTIONS = (layers.ConvLSTM1D, layers.ConvLSTM2D)


def unfold_recurrent(layer, scheme):
    """Unrolls an LSTM, GRU, SimpleRNN, ConvLSTM1D or ConvLSTM2D, or an RNN of cells.

    See `tfquant.unfold.unfold`.

    `recurrent_dropout` is not applied in training. A cell of your own is read as a composite layer
    is. A layer with more than `MAX_STEPS` or an unknown number of steps stays whole. A stateful
    layer starts from zeros at every call, and a warning says so.
    """
    convolutional = type(layer) in CONVOLUTIONS
    if convolutional and layer.cell.data_format != "channels_last":
        return None
    cells = getattr(layer.cell, "cells", [layer.cell])
    own = not convolutional and any(type(cell) not in CELLS for cell in cells)
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
        (ConvLstm if convolutional else CELLS[type(cell)])(cell, name, scheme, layer.trainable)
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
            state = [None] * cell.num_states if initial_state is None else as_list(initial_state)
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
    parts, config = Steps(layer.name, scheme), OutputConfig(scheme.activations)

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
            sizes = enumerate(as_list(layer.cell.state_size))
            state = [zeros(size, number, steps[0]) for number, size in sizes]
        else:
            state = as_list(initial_state)
        inputs = [keras.Input(batch_shape=x.shape) for x in (steps[0], *state)]
        try:
            y, new = read(layer.cell, (inputs[0], inputs[1:]), {})
        except Exception as error:  # Whatever the user's code raises on symbolic tensors.
            _logger.debug("The cell of '%s' cannot be read: %s", layer.name, error)
            return None
        cell = keras.Model(inputs, [y, *as_list(new)], name=f"{layer.name}_cell")
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
    parts = Steps(layer.name, scheme, layer.trainable)

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
    merge, parts = QuantizeAnnotate(merge()), Steps(f"{layer.name}_backward", scheme)

    def call(sequences, initial_state=None, mask=None, training=None):
        del training
        halves = [None, None]
        if initial_state is not None:
            count = len(initial_state) // 2
            halves = initial_state[:count], initial_state[count:]
        results = [f(sequences, half, mask) for f, half in zip(directions, halves, strict=True)]
        if None in results:
            return None
        (forward, *states), (backward, *more) = map(as_list, results)
        if layer.return_sequences:
            backward = parts.reverse(backward)
        y = merge([forward, backward])
        return [y, *states, *more] if layer.return_state else y

    return call
