"""Recorded operations called on other tensors, for any size."""

import dataclasses
import itertools

import keras
import numpy as np
from keras import layers, tree

from tfquant.graph.graph import put_in_place, tensors
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.layers.parts import Constant, Whole

# Operations that repeat a constant of batch size 1 for every row themselves.
_BROADCASTING = frozenset(
    {
        "Add",
        "Divide",
        "LogicalAnd",
        "LogicalOr",
        "Maximum",
        "Minimum",
        "Multiply",
        "Subtract",
        "TrueDivide",
        "Where",
    }
)


@dataclasses.dataclass
class _Known:
    """A value that does not depend on the inputs, in each run.

    Attributes:
        values: Arrays.
        trains: Whether it was computed from variables that train.
    """

    values: list
    trains: bool


class Replay:
    """Calls recorded operations on other tensors.

    Args:
        layer: The layer.
        recordings: Of runs that differ by their sizes.
        given: KerasTensors that the layer is called on.
        mark: As in `read`.
    """

    def __init__(self, layer, recordings, given, mark):
        self.layer, self.recordings, self.mark = layer, recordings, mark
        self.sizes = [recording.size for recording in recordings]
        self.lengths = list(zip(*(size.lengths for size in self.sizes), strict=True))
        # Tensors with each of the lengths, and one for what has none.
        in_front = {n: x for (x, axis), n in self.sizes[0].numbers.items() if axis == 1}
        self.likes = [in_front.get(number) for number in range(len(self.lengths))]
        self.like = next((x for x in self.likes if x is not None), given[0])
        self.values = [dict(recording.values) for recording in recordings]
        self.named, self.constants = {}, itertools.count()

    def outputs(self):
        """Returns the outputs of the layer."""
        for calls in zip(*(recording.calls for recording in self.recordings), strict=True):
            self._call(calls)
        found = [self._look_up(i, r.outputs) for i, r in enumerate(self.recordings)]
        flat = [tree.flatten(outputs) for outputs in found]
        merged = [self._symbolic(self._merge(None, parts)) for parts in zip(*flat, strict=True)]
        return tree.pack_sequence_as(found[0], merged)

    def _look_up(self, run, structure):
        return put_in_place(structure, self.values[run])

    def _call(self, calls):
        operations = [operation for operation, *_ in calls]
        arguments = [self._look_up(i, call[1:3]) for i, call in enumerate(calls)]
        flat = [tree.flatten(a) for a in arguments]
        if any(isinstance(x, keras.KerasTensor) for x in flat[0]):
            operation = self._named(_merge_operations(calls, self.sizes))
            merged = [self._merge(operation, parts) for parts in zip(*flat, strict=True)]
            args, kwargs = tree.pack_sequence_as(arguments[0], merged)
            results = [operation(*args, **kwargs)] * len(calls)
        else:
            results = self._compute(operations, arguments)
        for values, (*_, symbolic), result in zip(self.values, calls, results, strict=True):
            pairs = zip(tree.flatten(symbolic), tree.flatten(result), strict=True)
            values.update(pairs)

    def _named(self, operation):
        """Returns `operation`, or a copy of it where another has its name."""
        name = self.recordings[0].names.get(operation, operation.name)
        if name == operation.name:
            return operation
        if name not in self.named:
            copy = self.named[name] = copy_layer(operation, name=name)
            copy.build_from_config(operation.get_build_config())
            transfer_weights(operation, copy)
        return self.named[name]

    def _compute(self, operations, arguments):
        """Computes what depends on no input, in each run."""
        results = []
        for run, (operation, both) in enumerate(zip(operations, arguments, strict=True)):
            leaves = tree.flatten(both)
            trains = any(getattr(x, "trains", getattr(x, "trainable", False)) for x in leaves)
            args, kwargs = tree.map_structure(
                lambda x, run=run: x.values[run] if isinstance(x, _Known) else x, both
            )
            results.append((operation(*args, **kwargs), trains))
        trains = results[0][1]
        flat = [tree.flatten(y) for y, _ in results]
        known = [_Known(list(parts), trains) for parts in zip(*flat, strict=True)]
        return [tree.pack_sequence_as(results[0][0], known)] * len(results)

    def _merge(self, operation, parts):
        """Returns what an argument is for any size."""
        first = parts[0]
        if isinstance(first, (keras.KerasTensor, keras.Variable)):
            return first
        if isinstance(first, _Known):
            return self._constant(operation, first.values, first.trains)
        if keras.ops.is_tensor(first) or isinstance(first, np.ndarray):
            return self._constant(operation, parts, False)
        if any(x != first for x in parts):
            raise ValueError(f"An argument depends on the size: {parts}.")
        return first

    def _constant(self, operation, parts, trains):
        arrays = [keras.ops.convert_to_numpy(x) for x in parts]
        broadcasts = operation is not None and type(operation).__name__ in _BROADCASTING
        if broadcasts and self._starts_with_length(arrays):
            arrays = [x[None] for x in arrays]
        shapes = [x.shape for x in arrays]
        differing = [i for i, sizes in enumerate(zip(*shapes, strict=True)) if len({*sizes}) > 1]
        values, free_axes = arrays[-1], [axis for axis in differing if axis]
        if 0 in differing:
            values = values[:1]
        for x in arrays:
            cut = values[tuple(slice(n) for n in (None, *x.shape[1:])[: x.ndim])]
            if not np.allclose(np.broadcast_to(cut, x.shape), x, rtol=1e-5, atol=1e-6):
                raise ValueError("A constant depends on the size.")
        numbers = {self._length(tuple(shape[axis] for shape in shapes)) for axis in free_axes}
        if len(numbers) > 1:
            raise ValueError("A constant depends on several lengths.")
        if free_axes or (differing and (trains or not broadcasts)):
            return self._held(values, trains, free_axes, *numbers)
        return values if differing else parts[0]

    def _length(self, sizes):
        """Returns the number of the length that is of these sizes in the runs."""
        if sizes not in self.lengths or self.likes[self.lengths.index(sizes)] is None:
            raise ValueError(f"A constant's axis is no length: {sizes}.")
        return self.lengths.index(sizes)

    def _starts_with_length(self, arrays):
        return tuple(len(x) if x.ndim else 0 for x in arrays) in self.lengths

    def _symbolic(self, x):
        """Returns an output as a KerasTensor."""
        if isinstance(x, keras.KerasTensor):
            return x
        values = np.asarray(x)
        name = f"{self.layer.name}_constant_{next(self.constants)}"
        return Whole.of(values, False, name)(self.like)

    def _held(self, values, trains, free_axes=(), number=None):
        like = self.like if number is None else self.likes[number]
        batch = self.sizes[-1].batch or like.shape[0]
        if values.ndim == 0 or values.shape[0] not in (1, batch):
            return values
        name = f"{self.layer.name}_constant_{next(self.constants)}"
        constant = Constant.of(values[:1], trains, name, free_axes)
        return (self.mark(constant) if values.dtype.kind == "f" else constant)(like)


def _merge_operations(calls, sizes):
    """Returns the operation of calls in each run, for any size."""
    operations = [operation for operation, *_ in calls]
    first = operations[0]
    name = type(first).__name__
    if len(operations) == 1 or first is operations[1]:
        return first
    if any(type(operation).__name__ != name for operation in operations):
        raise ValueError(f"The size decides about {name}.")
    configs = [{**operation.get_config(), "name": None} for operation in operations]
    if configs[0] == configs[1]:
        return first
    if name == "Reshape":
        return _merge_reshapes(calls, sizes)
    raise ValueError(f"{name} depends on the size: {configs}.")


def _merge_reshapes(calls, sizes):
    """Returns what reshapes do for any size: the batch may be part of one axis."""
    shapes = [tree.flatten(outputs)[0].shape for *_, outputs in calls]
    given = [tensors(args)[0].shape for _, args, *_ in calls]
    batches = tuple(size.batch for size in sizes)
    lengths = list(zip(*(size.lengths for size in sizes), strict=True))
    pairs = list(zip(*shapes, strict=True))
    differing = [axis for axis, pair in enumerate(pairs) if len({*pair}) > 1]
    target = [-1 if axis in differing else pair[0] for axis, pair in enumerate(pairs)]
    name = calls[0][0].name
    if pairs[0] == batches and tuple(shape[0] for shape in given) == batches:
        if len(differing) == 1 or (len(differing) == 2 and pairs[differing[1]] in lengths):
            return layers.Reshape(target[1:], name=name)
    elif len(differing) == 1:
        return type(calls[0][0])(tuple(target), name=name)
    raise ValueError(f"A reshape depends on the size: {shapes}.")
