"""The proof: what Keras computes against what the device computes."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfquant.data.batches import joined
from tfquant.data.memory import Sweep, give_back
from tfquant.graph.runner import Runner, counts_elsewhere, each_rows_first, rows_first
from tfquant.layers.parts import Constant
from tfquant.litert.flatbuffer import File
from tfquant.litert.interpreter import dequantize, run_inner, to_file_inputs
from tfquant.litert.parity import of_outputs, parity
from tfquant.numerics.arrays import array_of
from tfquant.quantizers import RecordingScope, on_grid
from tfquant.report import Parity, PartReport
from tfquant.report.weights import sqnr
from tfquant.rewrite.lower import Lowered, Point
from tfquant.tflite import parts
from tfquant.tflite.assign import Assignment
from tfquant.wrappers import CallHook, Quantize, QuantizeWrapper

# Rows fed through every operator, and through the whole file.
INNER_ROWS = 4
ROWS = 256
ROWS_PER_BATCH = 32

# Rows of a large model that run whole, and activations computed for it: fewer rows than of others.
LEAST_ROWS = 8
VALUES = 8e7


def point_tensors(
    file: File, float_file: File, anchors: dict[int, list[Point]]
) -> dict[int, tuple[int, Point]]:
    """Finds each point's tensor in the quantized file.

    Args:
        file: The quantized file.
        float_file: The file it was made from; tensors keep their names.
        anchors: From `anchor`, on the float file.

    Returns:
        Dict from a point's KerasTensor to `(tensor index, point)`.
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
                    if bounded or point.tensor not in found:
                        found[point.tensor] = tensor, point
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

    Attributes:
        own: Dict from a unit to the `Parity` of what the model itself computes there and the
            device, where both have computed the same in front of it.
    """

    def __init__(self, model, lowered: Lowered, file: File, content, tensors, rows, run):
        self.lowered, self.file = lowered, file
        # Of several rows at once none is found again on another axis than the first.
        several = file.shape(file.inputs[0])[:1] > (1,)
        self.tensor_of = {
            x: (index, point)
            for x, (index, point) in tensors.items()
            if not counts_elsewhere(x.shape) or (not several and _fits(file.shape(index), x.shape))
        }
        size = sum(math.prod(n or 1 for n in p.tensor.shape[1:]) for p in lowered.points)
        count = max(LEAST_ROWS, min(ROWS, int(VALUES / max(size, 1))))
        self.rows = [array[:count] for array in rows]
        self.computed_away = {}
        self._noise, self._parts, self._parities = {}, {}, {}
        self.own, self._apart = {}, set()
        inner = [array[:INNER_ROWS] for array in rows]
        self.device = run_inner(file, to_file_inputs(file, inner), run)
        runner = Runner(model)
        self._run_float(runner)
        give_back()
        self._run_exactly(runner)
        self._received = run(content, to_file_inputs(file, self.rows))

    def _run_float(self, runner):
        """Notes the noise of each unit: what it computes without any quantization, and here."""
        units, by_tensor = iter(self.lowered.units), parts.producers(self.lowered)
        rows = [array[:ROWS_PER_BATCH] for array in self.rows]

        def note(layer, args, kwargs, outputs):
            del args, kwargs
            if isinstance(layer, (Quantize, QuantizeWrapper)) and layer.quantizes:
                self._note_noise(next(units), tree.flatten(outputs)[0], len(rows[0]), by_tensor)

        with RecordingScope(quantize_weights=False, see=lambda *_: None):
            outputs = runner(rows, note)
        ends = zip(outputs, runner.ends, strict=True)
        self._float = [rows_first(array_of(y), x.shape) for y, x in ends]

    def _note_noise(self, unit, signal, rows, by_tensor):
        """Compares what a unit computes in float for a batch of `rows` with the device."""
        x = unit.outputs[0]
        if x not in self.tensor_of or not keras.backend.is_float_dtype(x.dtype):
            return
        index, point = self.tensor_of[x]
        signal = rows_first(array_of(signal), x.shape)
        count = len(self.rows[0][:INNER_ROWS])
        received, step = dequantize(self.file, index, self._of_device(x)), point.grid
        first = signal[: len(signal) // rows * count] if signal.ndim else signal
        if first.size != received.size:
            return  # The rows are not on the first axis.
        received = received.reshape(first.shape)
        self._noise[unit] = sqnr(first, received)
        if step is not None:
            self._parts[unit] = [
                parts.report(name, signal[at], step.params.scale, sqnr(first[at], received[at]))
                for name, at in parts.parts_of(unit, by_tensor)
            ]

    def _run_exactly(self, runner):
        """Runs the model, and compares what its units compute in the first rows."""
        size = min(ROWS_PER_BATCH, len(self.rows[0]))
        units, found, sweep = iter(self.lowered.units), [], Sweep()

        def note(layer, args, kwargs, outputs):
            del args, kwargs
            flat = tree.flatten(outputs)
            sweep.note(sum(math.prod(y.shape) for y in flat if y is not None))
            if isinstance(layer, (Quantize, QuantizeWrapper)) and layer.quantizes:
                self._note_parity(next(units), flat, size)

        with CallHook(_without_gradients):
            for start in range(0, len(self.rows[0]), size):
                part = [array[start : start + size] for array in self.rows]
                outputs = runner(part, None if start else note)
                ends = zip(outputs, runner.ends, strict=True)
                found.append([rows_first(array_of(y), x.shape) for y, x in ends])
        self._outputs = joined(found)

    def _note_parity(self, unit, outputs, rows):
        """Compares what a unit computed for a batch of `rows` with what the device did.

        Where the device's inputs were others than the model's, it is run on the device's.
        """
        own = [self._compared(x, y, rows) for x, y in zip(unit.outputs, outputs, strict=True)]
        # Behind a layer that stays float it is the unit's own input that the file has a tensor of.
        behind_float = any(x is y for x in unit.inputs for y in unit.outputs)
        apart = any(self._is_apart(x) for x in unit.inputs) or (behind_float and bool(self._apart))
        self._apart.update(
            x for x, p in zip(unit.outputs, own, strict=True) if p is None or p.differing
        )
        if not apart and None not in own:
            self.own[unit] = sum(own[1:], own[0])
        known = all(x in self.tensor_of or self._device_value(x) is not None for x in unit.inputs)
        if not known or not all(x in self.tensor_of for x in unit.outputs):
            return
        if unit not in self.own or behind_float:
            outputs = self._run(unit)
            own = [self._compared(x, y) for x, y in zip(unit.outputs, outputs, strict=True)]
        self._parities[unit] = sum(own[1:], own[0])

    def _compared(self, x, y, rows: int | None = None) -> Parity | None:
        """Compares what Keras computed for `x` with the device's; `None` if it cannot be.

        Args:
            x: KerasTensor of the float model.
            y: Tensor, computed for a batch of `rows` or, for `None`, for those of the device.
        """
        if x not in self.tensor_of:
            return None
        y = rows_first(array_of(y), x.shape)
        received, count = self._of_device(x), len(y) if y.ndim else 1
        if rows is not None and count % rows == 0:
            y = y[: count // rows * min(INNER_ROWS, rows)]
        if math.prod(y.shape) != received.size:
            return None  # The rows are not on the first axis.
        return parity(self.file, self.tensor_of[x][0], y, received)

    def _is_apart(self, x) -> bool:
        """Whether the model and the device have computed something else for `x`."""
        if x in self.tensor_of:
            return x in self._apart
        units = (u for u in self.lowered.units if any(y is x for y in u.outputs))
        unit = next(units, None)
        if unit is None:  # Of a layer that stays float, or an input of the model.
            return bool(self._apart) and not any(x is y for y in self.lowered.model.inputs)
        return any(y is not x and self._is_apart(y) for y in unit.inputs)

    def end_to_end(self) -> Parity:
        """Compares the outputs of whole runs."""
        return of_outputs(self.file, self._outputs, self._received)

    def output_sqnr(self) -> list[float | None]:
        """Returns the noise of each output in dB, file against float model.

        `None` of what is no real number, or whose rows are not counted on the first axis.
        """
        found = []
        for index, signal, received in zip(
            self.file.outputs, self._float, self._received, strict=True
        ):
            received = dequantize(self.file, index, received[: len(signal)])
            fits = signal.dtype.kind == "f" and received.size == signal.size
            found.append(sqnr(signal, received.reshape(signal.shape)) if fits else None)
        return found

    def unit(self, unit) -> Parity | None:
        """Compares one call of a layer, fed the device's own inputs; `None` if it has no tensor."""
        return self._parities.get(unit)

    def unit_sqnr(self, unit) -> float | None:
        """Returns the unit's signal to quantization noise ratio in dB, device against float."""
        return self._noise.get(unit)

    def parts(self, unit) -> list[PartReport]:
        """Returns what the grid leaves of each part of the unit's output."""
        return self._parts.get(unit, [])

    def parting(self, parities) -> str | None:
        """Returns the name of the layer where file and model part, `None` if no layer says so.

        It computes what the device computes when it is fed the device's values, and something else
        on the model's own, though these agree with the device: its tensors are not those of the
        file that they are said to be.

        Args:
            parities: What `unit` returned for each unit.
        """
        inputs = zip(self.lowered.model.inputs, self.rows, strict=True)
        own = {x: tf.constant(array[:INNER_ROWS]) for x, array in inputs}
        apart = set()
        for unit, fed in zip(self.lowered.units, parities, strict=True):
            if fed is None:
                continue
            agree = not any(x in apart for x in unit.inputs)
            outputs = self._run(unit, own)
            for x, y in zip(unit.outputs, outputs, strict=True):
                own[x] = y
                index, _ = self.tensor_of[x]
                y = rows_first(array_of(y), x.shape)
                if not parity(self.file, index, y, self._of_device(x)).differing:
                    continue
                if agree and not fed.differing:
                    return unit.name
                apart.add(x)
        return None

    def _run(self, unit, known=None):
        """Runs one call of a layer in Keras on known values, or what the device computed."""

        def value(x):
            if not isinstance(x, keras.KerasTensor):
                return x
            return known[x] if known and x in known else self._device_value(x)

        args, kwargs = tree.map_structure(value, (unit.args, unit.kwargs))
        return tree.flatten(unit.layer(*args, **{**kwargs, "training": False}))

    def _of_device(self, x):
        """Returns what the file computed for `x`, the axis that counts the rows in front."""
        return each_rows_first(self.device[self.tensor_of[x][0]], x.shape)

    def _device_value(self, x):
        """Returns what the device computed for `x`, on its grid; `None` if nothing is known.

        Where the converter drew a layer that keeps the grid (a padding, say) into the next one,
        it is run in Keras on what the device computed before it.
        """
        if x in self.computed_away:
            return self.computed_away[x]
        if x not in self.tensor_of:
            value = self._computed_away(x)
            self.computed_away[x] = value
            return value
        index, point = self.tensor_of[x]
        values = dequantize(self.file, index, self._of_device(x))
        if counts_elsewhere(x.shape):
            return on_grid(tf.constant(np.moveaxis(values, 0, x.shape.index(None))), point.grid)
        shape = [-1 if n is None else n for n in x.shape[1:]]
        # Some layers of Keras are wrong about their shapes.
        if shape.count(-1) < 2 and values[0].size % abs(math.prod(shape)) == 0:
            # Windows of an image are rows here, and may be more than those of the batch.
            values = values.reshape((len(values) if -1 in shape else -1, *shape))
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


def _fits(found, expected) -> bool:
    """Whether a tensor of the file has the sizes that Keras says, but for one that is free."""
    known = [n for n in expected if n is not None]
    return len(known) == len(expected) - 1 and math.prod(found) % math.prod(known) == 0


def _without_gradients(*_):
    """Is a `CallHook` that leaves all as it is: nobody prepares for gradients under one."""


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
