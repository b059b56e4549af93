"""The proof: what Keras computes against what ONNX Runtime computes."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfquant.data.batches import joined
from tfquant.graph.runner import rows_first
from tfquant.litert.parity import equal_predictions
from tfquant.nodes.extra import load
from tfquant.nodes.graph import Written
from tfquant.nodes.writer import Value
from tfquant.onnx.run import Session
from tfquant.quantizers import RecordingScope, grid_of, on_grid
from tfquant.report import Parity
from tfquant.report.weights import sqnr

# Rows fed through every operator, and through the whole file.
INNER_ROWS = 4
ROWS = 256
ROWS_PER_BATCH = 32
LEAST_ROWS = 8
VALUES = 8e7


class Verifier:
    """Compares a quantized Keras model with its graph.

    Args:
        written: `Written`.
        rows: Real inputs, one array for each input of the model.

    Attributes:
        inner: `Session` of the graph that returns what each unit reads and computes.
    """

    def __init__(self, written: Written, rows):
        self.written, runner = written, written.runner
        count = max(LEAST_ROWS, min(ROWS, int(VALUES / max(runner.values_per_row, 1))))
        self.rows = [array[:count] for array in rows]
        self.few = [array[:INNER_ROWS] for array in rows]
        self._find_values()

    def _find_values(self):
        """Runs the graph in a form that returns what the units read and compute."""
        written, wanted = self.written, {}
        for number in written.units:
            call = written.runner.calls[number]
            for x in (*call.inputs, *call.flat_outputs):
                value = written.values[x]
                if value.held is None and _name(value) not in written.inputs:
                    wanted[_name(value)] = value
        model = type(written.model)()
        model.CopyFrom(written.model)
        del model.graph.output[:]
        for name, value in wanted.items():
            info = model.graph.output.add()
            info.name = name
            info.type.tensor_type.elem_type = _element(value)
        self.inner = Session(model.SerializeToString())
        outputs = self.inner(self.feed(self.few))
        self._known = dict(zip(wanted, outputs, strict=True))
        self._known |= dict(zip(written.inputs, self.few, strict=True))

    def feed(self, rows) -> dict:
        """Returns arrays by the names of the inputs, in the types of the file."""
        types = [self.written.values[x].dtype for x in self.written.runner.inputs]
        named = zip(self.written.inputs, rows, types, strict=True)
        return {name: np.asarray(array).astype(dtype) for name, array, dtype in named}

    def _found(self, x) -> np.ndarray:
        """Returns what the device computed for a KerasTensor: integers, or real values."""
        value = self.written.values[x]
        found = value.held if value.held is not None else self._known[_name(value)]
        return np.moveaxis(found, 1, -1) if value.first and found.ndim > 2 else found

    def _real(self, x, grid):
        """Returns the same as Keras reads it."""
        value, found = self.written.values[x], self._found(x)
        if value.step is not None:
            steps = found.astype(np.float32) - value.step.zero_point
            found = steps * value.step.scale
        if value.held is not None:
            found = np.broadcast_to(found, (len(self.few[0]), *found.shape[1:]))
        tensor = tf.constant(found)
        return tensor if grid is None or value.step is None else on_grid(tensor, grid)

    def unit(self, number: int) -> Parity | None:
        """Compares one call of a layer, fed the device's own inputs."""
        call, unit = self.written.runner.calls[number], self.written.units[number]
        grids = dict(zip(call.inputs, map(grid_of, unit.inputs), strict=False))
        value = lambda x: self._real(x, grids.get(x)) if isinstance(x, keras.KerasTensor) else x  # noqa: E731
        args, kwargs = tree.map_structure(value, (call.args, call.kwargs))
        expected = tree.flatten(call.run(*args, **kwargs, **call.training))
        found = [
            self.compared(self.written.values[x], y, self._found(x))
            for x, y in zip(call.flat_outputs, expected, strict=True)
            if self.written.values[x].held is None and keras.backend.is_float_dtype(x.dtype)
        ]
        return sum(found[1:], found[0]) if found else None

    def compared(self, value: Value, expected, received) -> Parity:
        """Compares real values with integers, in steps, or with real values."""
        expected = keras.ops.convert_to_numpy(expected).reshape(received.shape)
        if value.step is None:
            return _of_reals(expected, received)
        q = np.rint(expected / value.step.scale).astype(np.float64) + value.step.zero_point
        return _of_steps(np.abs(q - received))

    def noise(self) -> dict[int, float | None]:
        """Returns the signal to quantization noise ratio of each unit's output, in dB."""
        found, numbers = {}, iter(self.written.units)

        def note(layer, args, kwargs, outputs):
            del args, kwargs
            if getattr(layer, "quantizes", False):
                number = next(numbers)
                x = self.written.runner.calls[number].flat_outputs[0]
                found[number] = self._sqnr(x, tree.flatten(outputs)[0])

        with RecordingScope(quantize_weights=False, see=lambda *_: None):
            self.written.runner(self.few, note)
        return found

    def _sqnr(self, x, signal):
        value = self.written.values[x]
        if value.held is not None or not keras.backend.is_float_dtype(x.dtype):
            return None
        received = keras.ops.convert_to_numpy(self._real(x, None))
        return sqnr(keras.ops.convert_to_numpy(signal).reshape(received.shape), received)

    def end_to_end(self, session: Session) -> Parity:
        """Compares the outputs of whole runs."""
        ends, ours, theirs = self.written.runner.ends, [], []
        for start in range(0, len(self.rows[0]), ROWS_PER_BATCH):
            part = [array[start : start + ROWS_PER_BATCH] for array in self.rows]
            outputs = self.written.runner(part)
            ours.append(
                [
                    rows_first(keras.ops.convert_to_numpy(y), x.shape)
                    for y, x in zip(outputs, ends, strict=True)
                ]
            )
            theirs.append(session(self.feed(part)))
        ours, theirs = (joined(found) for found in (ours, theirs))
        parts = [
            self._of_output(self.written.values[x], *pair)
            for x, *pair in zip(ends, ours, theirs, strict=True)
        ]
        total = sum(parts[1:], parts[0])
        equal = equal_predictions(list(zip(ours, theirs, strict=True)))
        return dataclasses.replace(total, rows=len(self.rows[0]), equal_predictions=equal)

    def _of_output(self, value, expected, received):
        if value.step is None:
            return _of_reals(expected.reshape(received.shape), received)
        steps = [
            np.rint(x.reshape(received.shape) / value.step.scale) for x in (expected, received)
        ]
        return _of_steps(np.abs(steps[0] - steps[1]))


def _name(value):
    return value.real if value.q is None else value.q


def _element(value):
    """Returns the number that ONNX gives the type of a tensor."""
    kind = value.step.dtype.name if value.step is not None else value.dtype
    onnx, _ = load()
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))


def _of_steps(apart):
    return Parity(apart.size, int((apart > 0).sum()), float(apart.max(initial=0)))


def _of_reals(expected, received):
    apart = np.abs(expected.astype(np.float64) - received)
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-12)
    largest = float(apart.max(initial=0.0)) / scale
    return Parity(apart.size, int((apart > 0).sum()), largest, in_steps=False)
