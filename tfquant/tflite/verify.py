"""The proof: what Keras computes against what the device computes."""

import collections
import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfquant.layers.parts import Constant
from tfquant.litert.flatbuffer import File
from tfquant.litert.interpreter import dequantize, quantize, run_inner, to_file_inputs
from tfquant.litert.parity import equal_predictions, parity
from tfquant.quantizers import RecordingScope, on_grid
from tfquant.report import Parity
from tfquant.rewrite.lower import Lowered, Point
from tfquant.tflite.assign import Assignment
from tfquant.wrappers import Quantize

# Rows fed through every operator, and through the whole file.
INNER_ROWS = 4
ROWS = 256
ROWS_PER_BATCH = 32

# Activations computed in the comparison of whole runs: a large model is compared on fewer rows.
VALUES = 2.5e8


def point_tensors(
    file: File, float_file: File, anchors: dict[int, list[Point]]
) -> dict[int, tuple[int, Point]]:
    """Finds each point's tensor in the quantized file.

    Args:
        file: The quantized file.
        float_file: The file it was made from; tensors keep their names.
        anchors: From `anchor`, on the float file.

    Returns:
        Dict from the id of a point's KerasTensor to `(tensor index, point)`.
    """
    by_name = {file.name(i): i for i in file.computed()}
    found = {}
    for index, points in anchors.items():
        grid = points[0].grid
        for name in (float_file.name(index), float_file.name(index) + "_quantized"):
            tensor = by_name.get(name)
            if tensor is None:
                continue
            scale = file.scale(tensor)
            if grid is None or (scale.size and scale[0] == grid.params.scale):
                for point in points:
                    # Of a bounded tensor the last is the one behind the bounds.
                    bounded = grid and grid.spec.num_bits < grid.spec.stored_bits
                    if bounded or id(point.tensor) not in found:
                        found[id(point.tensor)] = tensor, point
    return found


class Verifier:
    """Compares a quantized Keras model with its file.

    Args:
        model: The quantized Keras model.
        lowered: What the file was made from.
        file: The quantized file.
        content: Its bytes.
        tensors: From `point_tensors`.
        rows: Real inputs, one array for each input of the model.
        run: Function of a file's bytes and of rows that runs it.
    """

    def __init__(self, model, lowered: Lowered, file: File, content, tensors, rows, run):
        self.model, self.lowered, self.file, self.content = model, lowered, file, content
        self.rows = rows
        inner = [array[:INNER_ROWS] for array in rows]
        self.run = run
        self.device = run_inner(file, to_file_inputs(file, inner), run)
        self.float_values = self._float_values(inner)
        self.tensor_of, self.computed_away = tensors, {}

    def end_to_end(self) -> Parity:
        """Compares the outputs of whole runs."""
        size = sum(math.prod(n or 1 for n in p.tensor.shape[1:]) for p in self.lowered.points)
        count = max(ROWS_PER_BATCH, min(ROWS, int(VALUES / max(size, 1))))
        rows = [array[:count] for array in self.rows]
        ours = self._predict(rows)
        theirs = self.run(self.content, to_file_inputs(self.file, rows))
        outputs = list(zip(self.file.outputs, ours, theirs, strict=True))
        parts = [parity(self.file, index, *pair) for index, *pair in outputs]
        total = sum(parts[1:], parts[0])
        pairs = [(quantize(self.file, index, a), b) for index, a, b in outputs]
        predictions = equal_predictions(pairs)
        return dataclasses.replace(total, rows=len(rows[0]), equal_predictions=predictions)

    def unit(self, unit) -> Parity | None:
        """Compares one call of a layer, fed the device's own inputs; `None` if it has no tensor."""
        known = [self._device_value(x) is not None for x in unit.inputs]
        if not all(known) or not all(id(x) in self.tensor_of for x in unit.outputs):
            return None
        outputs = self._run(unit)
        parts = []
        for x, y in zip(unit.outputs, outputs, strict=True):
            index, _ = self.tensor_of[id(x)]
            expected = keras.ops.convert_to_numpy(y)
            parts.append(parity(self.file, index, expected, self.device[index]))
        return sum(parts[1:], parts[0])

    def output_sqnr(self, unit) -> float | None:
        """Returns the unit's signal to quantization noise ratio in dB, device against float."""
        x = unit.outputs[0]
        if id(x) not in self.tensor_of or id(x) not in self.float_values:
            return None
        index, _ = self.tensor_of[id(x)]
        signal = self.float_values[id(x)].reshape(-1)
        return sqnr(signal, dequantize(self.file, index, self.device[index]).reshape(-1))

    def parting(self, parities) -> str | None:
        """Returns the name of the layer where file and model part, `None` if no layer says so.

        It computes what the device computes when it is fed the device's values, and something else
        on the model's own, though these agree with the device: its tensors are not those of the
        file that they are said to be.

        Args:
            parities: What `unit` returned for each unit.
        """
        inputs = zip(self.lowered.model.inputs, self.rows, strict=True)
        own = {id(x): tf.constant(array[:INNER_ROWS]) for x, array in inputs}
        apart = set()
        for unit, fed in zip(self.lowered.units, parities, strict=True):
            if fed is None:
                continue
            agree = not any(id(x) in apart for x in unit.inputs)
            outputs = self._run(unit, own)
            for x, y in zip(unit.outputs, outputs, strict=True):
                own[id(x)] = y
                index, _ = self.tensor_of[id(x)]
                y = keras.ops.convert_to_numpy(y)
                if not parity(self.file, index, y, self.device[index]).differing:
                    continue
                if agree and not fed.differing:
                    return unit.name
                apart.add(id(x))
        return None

    def _run(self, unit, known=None):
        """Runs one call of a layer in Keras on known values, or what the device computed."""

        def value(x):
            if not isinstance(x, keras.KerasTensor):
                return x
            return known[id(x)] if known and id(x) in known else self._device_value(x)

        args, kwargs = tree.map_structure(value, (unit.args, unit.kwargs))
        return tree.flatten(unit.layer(*args, **{**kwargs, "training": False}))

    def _device_value(self, x):
        """Returns what the device computed for `x`, on its grid; `None` if nothing is known.

        Where the converter drew a layer that keeps the grid (a padding, say) into the next one,
        it is run in Keras on what the device computed before it.
        """
        if id(x) in self.computed_away:
            return self.computed_away[id(x)]
        if id(x) not in self.tensor_of:
            value = self._computed_away(x)
            self.computed_away[id(x)] = value
            return value
        index, point = self.tensor_of[id(x)]
        values = dequantize(self.file, index, self.device[index])
        shape = [-1 if n is None else n for n in x.shape[1:]]
        # Some layers of Keras are wrong about their shapes.
        if shape.count(-1) < 2 and values[0].size % abs(math.prod(shape)) == 0:
            values = values.reshape((len(values), *shape))
        values = tf.constant(values)
        return on_grid(values, point.grid)

    def _computed_away(self, x):
        for unit in self.lowered.units:
            if not any(y is x for y in unit.outputs) or any(y is x for y in unit.inputs):
                continue
            if _is_computed_away(unit):
                if any(self._device_value(y) is None for y in unit.inputs):
                    return None
                outputs = self._run(unit)
                return next(v for y, v in zip(unit.outputs, outputs, strict=True) if y is x)
        return None

    def _predict(self, rows):
        batches = []
        for start in range(0, len(rows[0]), ROWS_PER_BATCH):
            part = [array[start : start + ROWS_PER_BATCH] for array in rows]
            outputs = self.model(tree.pack_sequence_as(self.model.input, part), training=False)
            batches.append([keras.ops.convert_to_numpy(y) for y in tree.flatten(outputs)])
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    def _float_values(self, rows):
        """Returns what the model computes without any quantization, by id of the KerasTensor."""
        with RecordingScope(quantize_weights=False) as scope:
            self.model(tree.pack_sequence_as(self.model.input, rows), training=False)
        of_quantizer = {}  # One that serves several calls noted them in their order.
        for quantizer, x in scope.records:
            of_quantizer.setdefault(id(quantizer), collections.deque()).append(x)
        values = {}
        for unit in self.lowered.units:
            for x, quantizer in zip(unit.outputs, unit.output_quantizers, strict=False):
                if of_quantizer.get(id(quantizer)):
                    recorded = of_quantizer[id(quantizer)].popleft()
                    values[id(x)] = keras.ops.convert_to_numpy(recorded)
        return values


def _is_computed_away(unit):
    """Whether a converter may leave no tensor of what `unit` computes."""
    if isinstance(unit.layer, Quantize) or not any(unit.output_quantizers):
        return True
    return isinstance(unit.layer.layer, Constant)


def saturated_biases(file: File, assignment: Assignment) -> int:
    """Counts biases at the end of their integer range."""
    count = 0
    for params in assignment.stored.values():
        if params.data is not None and params.data.dtype in (np.int32, np.int64):
            limit = np.iinfo(params.data.dtype).max
            count += int((np.abs(params.data.astype(np.float64)) >= limit).sum())
    return count


def sqnr(signal, received) -> float | None:
    """Returns `10 * log10(sum(signal**2) / sum((signal - received)**2))` in dB.

    `None` where the signal is zero; infinite noise-free ratios are given as 200 dB.
    """
    signal, received = signal.astype(np.float64), received.astype(np.float64)
    power, noise = (signal**2).sum(), ((signal - received) ** 2).sum()
    if power == 0:
        return None
    return 200.0 if noise == 0 else float(10 * np.log10(power / noise))
