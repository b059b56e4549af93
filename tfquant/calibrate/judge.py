"""`Judge`: how far a quantized model's outputs are from the float model's."""

import math

import keras
import numpy as np
from keras import activations, layers, ops, tree

from tfquant.calibrate.real import RealCalls
from tfquant.quantizers import RecordingScope
from tfquant.wrappers import CallHook, QuantizeWrapper

# Beyond it, outputs agree as far as float32 goes.
LARGEST_SQNR = 120.0

# Their input tells more than their output, most of which is 0 or 1.
SQUASHING = (activations.softmax, activations.log_softmax, activations.sigmoid)


class Judge:
    """Compares a model with the float model that it was made from, by what both put out.

    A layer's own noise says little: behind it, one error is forgotten and another decides. Scores
    are compared in front of the softmax or sigmoid that ends a model.

    Args:
        model: Quantized model, as it was before any correction.
        arrays: Inputs, a list, of rows that nothing else was found from.
        batch_size: Rows to compute at once.
        calls: `RealCalls` of the quantized model.

    Attributes:
        calls: What computes linear layers; corrections may put another in its place.
    """

    def __init__(self, model, arrays, batch_size: int, calls: RealCalls):
        heads = [_before_squashing(model, x) for x in tree.flatten(model.output)]
        self._model = keras.Model(model.input, heads)
        self._arrays, self._batch_size = arrays, batch_size
        self.calls = RealCalls()
        with RecordingScope(quantize_weights=False):
            self._expected = self._outputs()
        self.calls = calls

    def sqnr(self) -> float:
        """Returns the signal to noise ratio of the outputs in dB, their mean over several.

            10 log10(sum (y - mean of y over rows)^2 / sum (y - received)^2)

        What is the same for all rows is no signal: a network that went constant has 0 dB.
        """
        found = [_sqnr(*pair) for pair in zip(self._expected, self._outputs(), strict=True)]
        return sum(found) / len(found)

    def _outputs(self):
        count, parts = len(self._arrays[0]), []
        with CallHook(self.calls):
            for start in range(0, count, self._batch_size):
                rows = [array[start : start + self._batch_size] for array in self._arrays]
                rows = tree.pack_sequence_as(self._model.input, rows)
                outputs = self._model(rows, training=False)
                parts.append([ops.convert_to_numpy(x) for x in tree.flatten(outputs)])
        return [np.concatenate(x) for x in zip(*parts, strict=True)]


def _before_squashing(model, output):
    for layer in model.layers:
        if isinstance(layer, QuantizeWrapper) and len(layer.call_sites) == 1:
            inner = layer.layer
            squashes = isinstance(inner, layers.Softmax) or (
                isinstance(inner, layers.Activation) and inner.activation in SQUASHING
            )
            if squashes and layer.output is output:
                return tree.flatten(layer.input)[0]
    return output


def _sqnr(expected, received) -> float:
    if not np.issubdtype(expected.dtype, np.floating):
        expected, received = np.ones(expected.shape), np.where(expected == received, 1.0, 0.0)
    expected, received = expected.astype(np.float64), received.astype(np.float64)
    if not (np.isfinite(expected).all() and np.isfinite(received).all()):
        return -math.inf
    noise = np.mean((received - expected) ** 2)
    signal = np.mean((expected - expected.mean(axis=0)) ** 2) or np.mean(expected**2)
    if noise <= signal * 10 ** (-LARGEST_SQNR / 10):
        return LARGEST_SQNR
    return 10 * math.log10(signal / noise) if signal else -LARGEST_SQNR
