"""Reading a `call`: run on symbolic tensors, its operations noted and called on others.

A `call` may ask for more than a symbolic tensor knows. Variables that come first in a product
(`self.gain * x`) are replaced by symbolic tensors while it runs. A batch size or length that it
builds shapes and constants of (`ops.arange(ops.shape(x)[1])`) is two numbers in two runs: what
differs between them stands for it. Layers inside it are calls of their own, but where Keras cannot
call them on symbolic tensors: of those the operations are noted as well.
"""

import contextlib
import dataclasses
import itertools

import keras
import numpy as np
from keras import layers, tree

from tfquant.graph.graph import ReadMask, UniqueNames, clone_graph, put_in_place, tensors
from tfquant.graph.walk import is_readable
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.layers.parts import Constant, Whole

_KERAS_LAYERS = frozenset(x for x in vars(keras.layers).values() if isinstance(x, type))

# Of Keras's own layers, those whose `call` is made of operations that a device has.
OPEN = (keras.layers.Attention, keras.layers.AdditiveAttention, keras.layers.Lambda)

# Batch sizes of the two runs, and the longest sequence that is read where the length is free.
BATCHES = (2, 3)
LONGEST = 512

# Ways to say which free lengths are the same that are tried.
MOST_TRIED = 16

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
    """What a run takes for the free dimensions; `None` leaves them free.

    Attributes:
        batch: Number of rows.
        lengths: The lengths, one for each number in `numbers`.
        numbers: Dict from a tensor and an axis of it to the number of its length.
    """

    batch: int | None = None
    lengths: tuple = ()
    numbers: dict = dataclasses.field(default_factory=dict)

    def shape(self, x):
        """Returns the shape of a tensor with these dimensions."""
        if not x.shape:
            return x.shape
        batch = self.batch if x.shape[0] is None else x.shape[0]
        length = lambda axis: self.lengths[self.numbers[x, axis]] if self.lengths else None  # noqa: E731
        sizes = enumerate(x.shape[1:], 1)
        return (batch, *(length(axis) if n is None else n for axis, n in sizes))


def _in_two_runs(given, attempt):
    """Returns what `attempt` does with two sizes, of which the second is as long as it can be."""
    if not any(None in x.shape[1:] for x in given):
        return attempt(*map(_Size, BATCHES))
    first = None
    for numbers in itertools.islice(_equal_lengths(given), MOST_TRIED):
        try:
            return _longest(numbers, attempt)
        except Exception as error:
            first = first or error
    raise first or ValueError("Several lengths are free.")


def _equal_lengths(given):
    """Yields ways to say which free lengths of tensors are the same, the most different first.

    Those of masks are lengths of the sequences beside them.

    Args:
        given: KerasTensors.

    Yields:
        Dict from a tensor and an axis of it to the number of its length.
    """
    free = [(x, axis) for x in given for axis, n in enumerate(x.shape) if axis and n is None]
    own = [(x, axis) for x, axis in free if len(x.shape) > 2 and x.shape[-1] is not None]
    masks = [place for place in free if place not in own]
    if not own:
        flat = [place for place in masks if place[1] == 1]
        of_reals = [x for x, axis in masks if axis > 1 and keras.backend.is_float_dtype(x.dtype)]
        if flat and not of_reals:  # Else an axis is no length, or no tensor has it in front.
            yield dict.fromkeys(free, 0)
        return
    for numbers in sorted(_numberings(len(own)), key=max, reverse=True):
        same = dict(zip(own, numbers, strict=True))
        if len({(x, n) for (x, _), n in same.items()}) < len(own):
            continue  # Height and width of an image.
        for others in itertools.product(range(max(numbers) + 1), repeat=len(masks)):
            yield {**same, **dict(zip(masks, others, strict=True))}


def _numberings(count, used=0):
    """Yields the ways to number `count` things, a new number being the next."""
    if not count:
        yield ()
        return
    for number in range(used + 1):
        for rest in _numberings(count - 1, max(used, number + 1)):
            yield (number, *rest)


def _longest(numbers, attempt):
    """Returns what `attempt` does with the longest sequences that it works with."""
    count, found = max(numbers.values()) + 1, {}
    least = 2 if count == 1 else count + 2  # What is of length 1 would fit any other.

    def works(length):
        # The pair of a length tells it from others.
        pairs = [(length - 1 - number, length) for number in range(count)]
        sizes = zip(BATCHES, zip(*pairs, strict=True), strict=True)
        try:
            found[length] = attempt(*(_Size(*size, numbers) for size in sizes))
        except Exception as error:
            if length <= least:
                raise error
        return length in found

    length = LONGEST
    while not works(length):
        length = max(length // 2, least)
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
        names: Dict from a layer to a name that no other of these layers has.
    """

    values: dict
    calls: list
    outputs: object
    size: _Size
    names: dict = dataclasses.field(default_factory=dict)


def _record(layer, args, kwargs, given, size):
    inputs = {x: keras.Input(batch_shape=size.shape(x), dtype=x.dtype) for x in given}
    args, kwargs = put_in_place((args, kwargs), inputs)
    opened = _Opened()
    with _open(layer, opened):
        outputs = layer.call(*args, **kwargs)
    found, calls = tensors(outputs), []
    sources = [*inputs.values(), *(symbol for _, symbol in opened.variables)]
    stands_for = [*given, *(variable for variable, _ in opened.variables)]
    if not found:
        return _Recording({}, [], outputs, size)

    def call(operation, *args, **kwargs):
        results = operation(*args, **kwargs)
        calls.append((operation, args, kwargs, results))
        return results

    with opened.renamed(), _lengths_of_einsums(opened.names):
        copy = clone_graph(keras.Model(sources, found), lambda operation: operation, call)
    renamed = dict(zip(found, tree.flatten(copy.output), strict=True))
    values = dict(zip(tree.flatten(copy.input), stands_for, strict=True))
    return _Recording(values, calls, put_in_place(outputs, renamed), size, opened.names)


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


class _Opened:
    """What `_open` met.

    Attributes:
        variables: Pairs of a variable and its symbolic tensor.
        names: Dict from a layer to a name that no other of these layers has.
    """

    def __init__(self):
        self.variables, self.names, self._unique = [], {}, UniqueNames()

    def note(self, layer, outer):
        """Finds a name for `layer`, which is inside `outer`."""
        if layer not in self.names:
            twin = layer.name in self.names.values()
            name = f"{outer.name}_{layer.name}" if twin else layer.name
            self.names[layer] = self._unique(name)

    @contextlib.contextmanager
    def renamed(self):
        """Lets the layers have these names: those of the layers of a model must differ."""
        before = {layer: layer.name for layer in self.names}
        try:
            for layer, name in self.names.items():
                layer.name = name
            yield
        finally:
            for layer, name in before.items():
                layer.name = name


@contextlib.contextmanager
def _open(layer, opened):
    """Replaces what are attributes of `layer`: variables by symbolic tensors, layers by `_Inside`.

    Args:
        layer: Layer whose `call` is read.
        opened: `_Opened`.
    """

    def stand(x):
        if isinstance(x, keras.Variable):
            symbol = keras.Input(batch_shape=x.shape, dtype=x.dtype)
            opened.variables.append((x, symbol))
            return symbol
        if isinstance(x, list):
            return [stand(y) if isinstance(y, keras.layers.Layer) else y for y in x]
        opened.note(x, layer)
        return _Inside(x, opened) if is_composite(x) else x

    kinds, keras_own = (keras.Variable, keras.layers.Layer, list), vars(keras.layers.Layer())
    attributes = {
        n: x for n, x in vars(layer).items() if isinstance(x, kinds) and n not in keras_own
    }
    inside = [x for x in attributes.values() if isinstance(x, keras.layers.Layer)]
    try:
        # Past the layer's own bookkeeping, which takes no new attributes once it is built.
        vars(layer).update({name: stand(x) for name, x in attributes.items()})
        with _lengths_of_einsums(inside):
            yield
    finally:
        vars(layer).update(attributes)


@contextlib.contextmanager
def _lengths_of_einsums(inside):
    """Lets einsum layers announce the lengths of their inputs, not those they were made with."""
    found = [x for x in inside if type(x) is layers.EinsumDense and x.built]

    def announce(layer):
        def compute_output_spec(x):
            shape = keras.ops.einsum(layer.equation, x, layer.kernel).shape
            return keras.KerasTensor(shape, layer.compute_dtype)

        return compute_output_spec

    for layer in found:
        vars(layer)["compute_output_spec"] = announce(layer)
    try:
        yield
    finally:
        for layer in found:
            vars(layer).pop("compute_output_spec", None)


class _Inside:
    """Stands for a layer inside one that is read, and is called in its place.

    Keras calls a layer on symbolic tensors if they tell what it returns. What returns no tensors
    alone, or others than it announces, is read through.

    Args:
        layer: Layer that only its author knows.
        opened: `_Opened`.
    """

    def __init__(self, layer, opened):
        self._layer, self._opened = layer, opened

    def __getattr__(self, name):
        return getattr(self._layer, name)

    def __call__(self, *args, **kwargs):
        layer, variables = self._layer, self._opened.variables
        if not layer.built or _have_masks((args, kwargs)):
            return layer(*args, **kwargs)
        known = len(variables)
        try:
            with _open(layer, self._opened), _without_losses(layer):
                read = layer.call(*args, **kwargs)
        except Exception:  # Whatever the user's code raises on symbolic tensors.
            del variables[known:]
            return layer(*args, **kwargs)
        try:
            whole = layer(*args, **kwargs)
        except Exception:  # Keras's, or again the user's.
            return read
        if _announced(whole) != _announced(read):
            return read
        del variables[known:]
        return whole


def _announced(outputs):
    return [(x.shape, x.dtype) if hasattr(x, "dtype") else x for x in tree.flatten(outputs)]


def _have_masks(structure):
    """Whether masks travel with tensors: Keras alone hands them to a layer that it calls."""
    readers = [(ReadMask(), x) for x in tensors(structure)]
    for reader, x in readers:
        reader(x)
    return any(reader.is_masked for reader, _ in readers)


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
    """Returns what reshapes do for any size: the batch may be part of the first axis."""
    shapes = [tree.flatten(outputs)[0].shape for *_, outputs in calls]
    given = [tensors(args)[0].shape for _, args, *_ in calls]
    batches = tuple(size.batch for size in sizes)
    lengths = list(zip(*(size.lengths for size in sizes), strict=True))
    front, *rest = zip(*shapes, strict=True)
    target = [-1 if pair in lengths else pair[0] for pair in rest]
    if target.count(-1) > 1 or any(len({*pair}) > 1 and pair not in lengths for pair in rest):
        raise ValueError(f"A reshape depends on the size: {shapes}.")
    name = calls[0][0].name
    if front == batches and tuple(shape[0] for shape in given) == batches:
        return layers.Reshape(target, name=name)
    if -1 in target or front[0] == front[1]:
        raise ValueError(f"A reshape depends on the size: {shapes}.")
    return type(calls[0][0])((-1, *target), name=name)
