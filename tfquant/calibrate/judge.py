"""`Judge`: how far a quantized model's outputs are from the float model's."""

import contextlib
import math
from typing import NamedTuple

import keras
import numpy as np
from keras import activations, layers, tree

from tfquant.calibrate.bias_correction import noting
from tfquant.calibrate.real import RealCalls
from tfquant.calibrate.rows import Rows
from tfquant.data.batches import joined
from tfquant.graph.runner import Runner, rows_first
from tfquant.numerics.arrays import array_of
from tfquant.quantizers import RealScope, RecordingScope
from tfquant.wrappers import CallHook, QuantizeWrapper

# Beyond it, outputs agree as far as float32 goes.
LARGEST_SQNR = 120.0

# Their input tells more than their output, most of which is 0 or 1.
SQUASHING = (activations.softmax, activations.log_softmax, activations.sigmoid)


class Sqnr(NamedTuple):
    """Signal to noise ratio of a model's outputs in dB.

    Attributes:
        computed: On all rows that were computed.
        kept_out: On those that no correction is found on; on all where none is kept out.
    """

    computed: float
    kept_out: float


class Judge:
    """Compares a model with the float model that it was made from, by what both put out.

    A layer's own noise says little: behind it, one error is forgotten and another decides. Scores
    are compared in front of the softmax or sigmoid that ends a model.

    Args:
        model: Quantized model, its grids set, without any correction.
        rows: `Rows`.
        calls: `RealCalls` of the model.
        deviation: Whether corrections will ask for deviations.

    Attributes:
        rows: `Rows`.
        calls: `RealCalls`, what computes linear layers; corrections may put another in its place.
        moments: Dict from a wrapper to the `Moments` of the float model, on the rows to
            fit.
    """

    def __init__(self, model, rows: Rows, calls: RealCalls, deviation: bool):
        heads = [before_squashing(model, x) for x in model.outputs]
        self._run = Runner(keras.Model(model.inputs, heads))
        self.rows, self.calls, self.moments = rows, calls, {}
        share = rows.fitted / len(rows) if rows.batch_size is None else 1
        note = noting(self.moments, share, deviation)
        with RecordingScope(quantize_weights=False, see=lambda *_: None):
            self._expected = self._outputs(0, note)

    def sqnr(self, every: bool = False) -> "Sqnr":
        """Returns the signal to noise ratio of the outputs in dB, their mean over several.

            10 log10(sum (y - mean of y over rows)^2 / sum (y - received)^2)

        What is the same for all rows is no signal: a network that went constant has 0 dB.

        Args:
            every: Whether to compute the rows to fit as well.
        """
        with RealScope():
            return self._ratios(every, self.calls)

    def device_sqnr(self) -> float:
        """Returns the ratio on the rows that `sqnr` computes, of the integers of the device."""
        return self._ratios(False, None).computed

    def _ratios(self, every, hook):
        start = 0 if every or not self.rows.kept_out else self.rows.fitted
        received = self._outputs(start, hook)
        expected = [x[start:] for x in self._expected]
        behind = self.rows.fitted - start if self.rows.kept_out else 0
        if any(x.shape != y.shape for x, y in zip(expected, received, strict=True)):
            # Rows are compared with each other: only all of them can be.
            received, expected, behind = self._outputs(0, hook), self._expected, 0
        return Sqnr(mean_sqnr(expected, received, 0), mean_sqnr(expected, received, behind))

    def _outputs(self, start, hook):
        """Returns the outputs for the rows from `start` on."""
        parts = []
        with CallHook(hook) if hook else contextlib.nullcontext():
            for arrays in self.rows.batches(start):
                outputs = zip(self._run(arrays), self._run.ends, strict=True)
                parts.append([rows_first(array_of(x), y.shape) for x, y in outputs])
        return joined(parts)


def before_squashing(model, output):
    """Returns what the softmax or sigmoid reads that makes an output, or the output."""
    for layer in model.layers:
        if isinstance(layer, QuantizeWrapper) and len(layer.call_sites) == 1:
            inner = layer.layer
            squashes = isinstance(inner, layers.Softmax) or (
                isinstance(inner, layers.Activation) and inner.activation in SQUASHING
            )
            if squashes and layer.output is output:
                return tree.flatten(layer.input)[0]
    return output


def mean_sqnr(expected, received, start) -> float:
    """Returns the mean ratio of several outputs, on the rows from `start` on."""
    pairs = zip(expected, received, strict=True)
    found = [_sqnr(*(y[start:] for y in pair)) for pair in pairs]
    return sum(found) / len(found)


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
