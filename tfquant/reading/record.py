"""One run of a `call` on symbolic tensors, its operations noted."""

import contextlib
import dataclasses

import keras
from keras import layers, tree

from tfquant.graph.graph import ReadMask, UniqueNames, clone_graph, put_in_place, tensors
from tfquant.reading.own import is_composite
from tfquant.reading.sizes import Size


@dataclasses.dataclass
class Recording:
    """One run.

    Attributes:
        values: Dict from a symbolic tensor to the tensor or variable it stands for.
        calls: Operations, their arguments and outputs.
        outputs: Structure of what the `call` returned.
        size: Its `Size`.
        names: Dict from a layer to a name that no other of these layers has.
    """

    values: dict
    calls: list
    outputs: object
    size: Size
    names: dict = dataclasses.field(default_factory=dict)


def record(layer, args: tuple, kwargs: dict, given: list, size: Size) -> Recording:
    """Runs the `call` of `layer` on new symbolic tensors.

    Args:
        layer: Built layer.
        args: Positional arguments, whose KerasTensors are replaced.
        kwargs: Keyword arguments, likewise.
        given: Those KerasTensors.
        size: `Size` of the new ones.

    Raises:
        Exception: What the `call` raises.
    """
    inputs = {x: keras.Input(batch_shape=size.shape(x), dtype=x.dtype) for x in given}
    args, kwargs = put_in_place((args, kwargs), inputs)
    opened = _Opened()
    with _open(layer, opened):
        outputs = layer.call(*args, **kwargs)
    found, calls = tensors(outputs), []
    sources = [*inputs.values(), *(symbol for _, symbol in opened.variables)]
    stands_for = [*given, *(variable for variable, _ in opened.variables)]
    if not found:
        return Recording({}, [], outputs, size)

    def call(operation, *args, **kwargs):
        results = operation(*args, **kwargs)
        calls.append((operation, args, kwargs, results))
        return results

    with opened.renamed(), _lengths_of_einsums(opened.names):
        copy = clone_graph(keras.Model(sources, found), lambda operation: operation, call)
    renamed = dict(zip(found, tree.flatten(copy.output), strict=True))
    values = dict(zip(tree.flatten(copy.input), stands_for, strict=True))
    return Recording(values, calls, put_in_place(outputs, renamed), size, opened.names)


@contextlib.contextmanager
def without_losses(layer):
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
            with _open(layer, self._opened), without_losses(layer):
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
