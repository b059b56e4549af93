"""Reading a `call`: run on symbolic tensors, its operations noted and called on others.

A `call` may ask for more than a symbolic tensor knows. Variables that come first in a product
(`self.gain * x`) are replaced by symbolic tensors while it runs. A batch size or length that it
builds shapes and constants of (`ops.arange(ops.shape(x)[1])`) is two numbers in two runs: what
differs between them stands for it.
"""

import contextlib
import dataclasses
import itertools

import keras
import numpy as np
from keras import layers, tree

from tfquant.graph.graph import clone_graph, put_in_place, tensors
from tfquant.graph.walk import is_readable
from tfquant.layers.parts import Constant, Whole

_KERAS_LAYERS = frozenset(x for x in vars(keras.layers).values() if isinstance(x, type))

# Of Keras's own layers, those whose `call` is made of operations that a device has.
OPEN = (keras.layers.Attention, keras.layers.AdditiveAttention, keras.layers.Lambda)

# Batch sizes of the two runs, and the longest sequence that is read where the length is free.
BATCHES = (2, 3)
LONGEST = 512

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


def is_composite(layer) -> bool:
    """Whether `layer` is of a type that only its author knows."""
    if not isinstance(layer, keras.layers.Layer):
        return False
    if isinstance(layer, keras.Model):
        return not is_readable(layer)
    own = type(layer).__module__.partition(".")[0] == "tfquant"
    return type(layer) in OPEN or not (own or type(layer) in _KERAS_LAYERS)


def read(layer, args: tuple, kwargs: dict, mark=lambda constant: constant):
    """Calls what `layer.call` consists of on KerasTensors.

    Args:
        layer: Built layer or model.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        mark: Function of a `Constant` that returns the layer to call in its place.

    Returns:
        Structure of KerasTensors.

    Raises:
        Exception: What the `call` raised.
    """
    with _specs_from_calls(layer), _without_losses(layer):
        return _read(layer, args, kwargs, mark)


def _read(layer, args, kwargs, mark):
    given = list(dict.fromkeys(tensors((args, kwargs))))
    try:
        outputs = layer.call(*args, **kwargs)
        if _all_symbolic(outputs):
            return outputs
    except Exception as error:  # Whatever the user's code raises on symbolic tensors.
        first = error
    else:
        first = ValueError("It returns what does not depend on its inputs.")

    def attempt(*sizes):
        recordings = [_record(layer, args, kwargs, given, size) for size in sizes]
        return _Replay(layer, recordings, given, mark).outputs()

    try:
        return attempt(_Size())
    except Exception:
        try:
            return _in_two_runs(given, attempt)
        except Exception as last:
            raise first from last


@dataclasses.dataclass(frozen=True)
class _Size:
    """What a run takes for the free dimensions; `None` leaves them free."""

    batch: int | None = None
    length: int | None = None

    def shape(self, shape):
        """Returns `shape` with these dimensions."""
        if not shape:
            return shape
        batch = self.batch if shape[0] is None else shape[0]
        return (batch, *(self.length if n is None else n for n in shape[1:]))


def _in_two_runs(given, attempt):
    """Returns what `attempt` does with two sizes, of which the second is as long as it can be."""
    sequences = [x for x in given if None in x.shape[1:]]
    if not sequences:
        return attempt(*map(_Size, BATCHES))
    if sum(len(x.shape) > 2 for x in sequences) > 1 or any(None in x.shape[2:] for x in sequences):
        raise ValueError("Several lengths are free.")
    found = {}

    def works(length):
        sizes = zip(BATCHES, (length - 1, length), strict=True)
        try:
            found[length] = attempt(*(_Size(*size) for size in sizes))
        except Exception as error:
            if length <= 2:
                raise error
        return length in found

    length = LONGEST
    while not works(length):
        length //= 2
    too_long = min(2 * length, LONGEST + 1)
    while too_long - length > 1:
        middle = (length + too_long) // 2
        length, too_long = (middle, too_long) if works(middle) else (length, middle)
    return found[length]


def _all_symbolic(outputs):
    found = tree.flatten(outputs)
    return bool(found) and all(isinstance(x, keras.KerasTensor) for x in found)


@dataclasses.dataclass
class _Recording:
    """One run.

    Attributes:
        values: Dict from a symbolic tensor to the tensor or variable it stands for.
        calls: Operations, their arguments and outputs.
        outputs: Structure of what the `call` returned.
        size: Its `_Size`.
    """

    values: dict
    calls: list
    outputs: object
    size: _Size


def _record(layer, args, kwargs, given, size):
    inputs = {x: keras.Input(batch_shape=size.shape(x.shape), dtype=x.dtype) for x in given}
    args, kwargs = put_in_place((args, kwargs), inputs)
    with _symbolic_variables(layer) as variables:
        outputs = layer.call(*args, **kwargs)
    found, calls = tensors(outputs), []
    sources = [*inputs.values(), *(symbol for _, symbol in variables)]
    stands_for = [*given, *(variable for variable, _ in variables)]
    if not found:
        return _Recording({}, [], outputs, size)

    def call(operation, *args, **kwargs):
        results = operation(*args, **kwargs)
        calls.append((operation, args, kwargs, results))
        return results

    copy = clone_graph(keras.Model(sources, found), lambda operation: operation, call)
    renamed = dict(zip(found, tree.flatten(copy.output), strict=True))
    values = dict(zip(tree.flatten(copy.input), stands_for, strict=True))
    return _Recording(values, calls, put_in_place(outputs, renamed), size)


@contextlib.contextmanager
def _without_losses(layer):
    """Lets the `call` of `layer` add losses and metrics to nothing: a device knows none."""
    names = ("add_loss", "add_metric")
    vars(layer).update(dict.fromkeys(names, lambda *args, **kwargs: None))
    try:
        yield
    finally:
        for name in names:
            vars(layer).pop(name, None)


@contextlib.contextmanager
def _symbolic_variables(layer):
    """Replaces the variables that are attributes of `layer` by symbolic tensors.

    Yields:
        Pairs of a variable and its symbolic tensor.
    """
    attributes = {n: v for n, v in vars(layer).items() if isinstance(v, keras.Variable)}
    symbolic = {n: keras.Input(batch_shape=v.shape, dtype=v.dtype) for n, v in attributes.items()}
    try:
        # Past the layer's own bookkeeping, which takes no new attributes once it is built.
        vars(layer).update(symbolic)
        yield [(v, symbolic[n]) for n, v in attributes.items()]
    finally:
        vars(layer).update(attributes)


@contextlib.contextmanager
def _specs_from_calls(layer):
    """Lets the layers inside `layer` be called on symbolic tensors as their `call` can be.

    A subclass whose `call` takes more arguments than its parent's inherits a `compute_output_spec`
    that does not know them.
    """
    attributes = [x for x in vars(layer).values() if isinstance(x, (keras.layers.Layer, list))]
    inside = [x for x in tree.flatten(attributes) if is_composite(x)]
    with contextlib.ExitStack() as stack:
        for inner in inside:
            stack.enter_context(_spec_from_call(inner))
        yield


@contextlib.contextmanager
def _spec_from_call(layer):
    def compute_output_spec(*args, **kwargs):
        try:
            return type(layer).compute_output_spec(layer, *args, **kwargs)
        except TypeError:
            with _specs_from_calls(layer):
                outputs = layer.call(*args, **kwargs)
            return tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), outputs)

    vars(layer)["compute_output_spec"] = compute_output_spec
    try:
        yield
    finally:
        vars(layer).pop("compute_output_spec", None)


@dataclasses.dataclass
class _Known:
    """A value that does not depend on the inputs, in each run.

    Attributes:
        values: Arrays.
        trains: Whether it was computed from variables that train.
    """

    values: list
    trains: bool


class _Replay:
    """Calls recorded operations on other tensors.

    Args:
        layer: The layer.
        recordings: Of runs that differ by their sizes.
        given: KerasTensors that the layer is called on.
        mark: As in `read`.
    """

    def __init__(self, layer, recordings, given, mark):
        self.layer, self.recordings, self.mark = layer, recordings, mark
        self.like = next((x for x in given if None in x.shape[1:2]), given[0])
        self.sizes = [recording.size for recording in recordings]
        self.values = [dict(recording.values) for recording in recordings]
        self.constants = itertools.count()

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
            operation = _merge_operations(operations, self.sizes)
            merged = [self._merge(operation, parts) for parts in zip(*flat, strict=True)]
            args, kwargs = tree.pack_sequence_as(arguments[0], merged)
            results = [operation(*args, **kwargs)] * len(calls)
        else:
            results = self._compute(operations, arguments)
        for values, (*_, symbolic), result in zip(self.values, calls, results, strict=True):
            pairs = zip(tree.flatten(symbolic), tree.flatten(result), strict=True)
            values.update(pairs)

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
        if free_axes or (differing and (trains or not broadcasts)):
            return self._held(values, trains, free_axes)
        return values if differing else parts[0]

    def _starts_with_length(self, arrays):
        lengths = [size.length for size in self.sizes]
        return None not in lengths and [len(x) if x.ndim else 0 for x in arrays] == lengths

    def _symbolic(self, x):
        """Returns an output as a KerasTensor."""
        if isinstance(x, keras.KerasTensor):
            return x
        values = np.asarray(x)
        name = f"{self.layer.name}_constant_{next(self.constants)}"
        return Whole.of(values, False, name)(self.like)

    def _held(self, values, trains, free_axes=()):
        batch = self.sizes[-1].batch or self.like.shape[0]
        if values.ndim == 0 or values.shape[0] not in (1, batch):
            return values
        name = f"{self.layer.name}_constant_{next(self.constants)}"
        constant = Constant.of(values[:1], trains, name, free_axes)
        return (self.mark(constant) if values.dtype.kind == "f" else constant)(self.like)


def _merge_operations(operations, sizes):
    """Returns the operation for any size."""
    first = operations[0]
    if len(operations) == 1 or first is operations[1]:
        return first
    name = type(first).__name__
    if any(type(operation).__name__ != name for operation in operations):
        raise ValueError(f"The size decides about {name}.")
    configs = [{**operation.get_config(), "name": None} for operation in operations]
    if configs[0] == configs[1]:
        return first
    if name == "Reshape":
        of_batch, *rest = zip(*(operation.newshape for operation in operations), strict=True)
        lengths = tuple(size.length for size in sizes)
        target = [-1 if pair == lengths else pair[0] for pair in rest]
        if (
            of_batch == tuple(size.batch for size in sizes)
            and target.count(-1) < 2
            and all(a == b or (a, b) == lengths for a, b in rest)
        ):
            return layers.Reshape(target, name=first.name)
    raise ValueError(f"{name} depends on the size: {configs}.")
