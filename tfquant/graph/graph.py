"""A functional model as a list of calls, read through Keras's public cloning."""

import dataclasses
import functools
import inspect

import keras
from keras import tree

from tfquant.layers.copy import copy_layer
from tfquant.layers.integers import truthful
from tfquant.layers.parts import Remask, Unmask


@dataclasses.dataclass
class Node:
    """One call of a layer.

    Attributes:
        layer: The layer of the user's model (or `keras.Operation`).
        clone: A built copy of it, without its weights' values.
        args: Positional arguments; tensors are KerasTensors of the copy.
        kwargs: Keyword arguments, likewise.
        outputs: Structure of KerasTensors.
    """

    layer: object
    clone: object
    args: tuple
    kwargs: dict
    outputs: object

    @property
    def inputs(self) -> list:
        """KerasTensors among the arguments."""
        return tensors((self.args, self.kwargs))


@dataclasses.dataclass
class Graph:
    """A model as calls in an order in which they can run.

    Attributes:
        inputs: Structure of the copy's input KerasTensors.
        outputs: Structure of its output KerasTensors.
        nodes: Calls, none of a model: nested models are read through.
        name: Name of the model.
        unfolded: Models that stand for calls of layers that were unfolded.
    """

    inputs: object
    outputs: object
    nodes: list[Node]
    name: str
    unfolded: list = dataclasses.field(default_factory=list)

    def producer(self, tensor) -> Node | None:
        """Returns the call that `tensor` comes from; `None` for an input."""
        return self._producers.get(id(tensor))

    def consumers(self, tensor) -> list[Node]:
        """Returns the calls that read `tensor`."""
        return self._consumers.get(id(tensor), [])

    def is_output(self, tensor) -> bool:
        """Whether `tensor` is an output of the model."""
        return any(x is tensor for x in tree.flatten(self.outputs))

    def forget_order(self) -> None:
        """Makes the look-ups above see that calls were changed."""
        for name in ("_producers", "_consumers"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def _producers(self):
        return {id(x): node for node in self.nodes for x in tree.flatten(node.outputs)}

    @functools.cached_property
    def _consumers(self):
        readers = {}
        for node in self.nodes:
            for key in dict.fromkeys(map(id, node.inputs)):
                readers.setdefault(key, []).append(node)
        return readers


def trace(model, take_apart=lambda layer: None) -> Graph:
    """Reads `model` call by call, nested models included.

    The model's own layers are not called and keep their state: copies are.

    Args:
        model: Built functional or sequential model.
        take_apart: Function of a layer: a list of pairs of a new layer and its weights that stand
            for it, called one after the other; or a function of the arguments of a call that
            returns a functional model of the tensors among them, or `None` to keep that call; or
            `None` to keep the layer.

    Returns:
        `Graph`.
    """
    return _Tracer(take_apart).trace(model)


class _Tracer:
    """Reads a model and the models in it; what they share stays shared."""

    def __init__(self, take_apart):
        self.take_apart = take_apart
        self.copies, self.parts, self.graphs = {}, {}, {}
        self.unfolded = []
        self.unique = UniqueNames()

    def trace(self, model, shapes=None):
        """Returns the `Graph` of `model`, whose free dimensions are those of `shapes`."""
        nodes = []
        call = lambda layer, *args, **kwargs: self._call(nodes, layer, args, kwargs)  # noqa: E731
        copy = clone_graph(model, self._clone, call, shapes)
        return Graph(copy.input, copy.output, nodes, model.name, self.unfolded)

    def _clone(self, layer):
        """Notes what becomes of `layer`; the copy is made when the layer is called."""
        if id(layer) not in self.parts and not is_readable(layer):
            parts = self.take_apart(layer)
            if parts is not None and not callable(parts):
                parts = [(copy_layer(p, name=self.unique(p.name)), w) for p, w in parts]
            self.parts[id(layer)] = parts
        return layer

    def _copy(self, layer):
        if id(layer) not in self.copies:
            self.copies[id(layer)] = copy_layer(layer, name=self.unique(layer.name))
        return self.copies[id(layer)]

    def _call(self, nodes, original, args, kwargs):
        if is_readable(original):
            inputs = tensors((args, kwargs))
            # A fixed length around a model of free length is the length inside.
            shapes = tuple(x.shape for x in inputs)
            key = id(original), shapes
            if key not in self.graphs:
                self.graphs[key] = self.trace(original, shapes)
            return _replay(self.graphs[key], inputs, nodes)
        args, kwargs = _positional(original, args, kwargs)
        parts = self.parts[id(original)]
        if callable(parts) and not isinstance(original, keras.layers.Layer):
            args, kwargs = self._without_masks(original, args, kwargs, nodes)
        if callable(parts):
            kwargs = _read_masks(original, args, kwargs, nodes, self.unique)
            model = parts(args, kwargs)
            if model is not None:
                self.unfolded.append(model)  # Its layers are known by their ids: keep them.
                inputs = {id(x): x for x in tensors((args, kwargs))}
                outputs = _replay(self.trace(model), list(inputs.values()), nodes)
                return self._with_mask(original, args, kwargs, outputs, nodes)
        if parts is None or callable(parts):
            copy = self.copies[id(original)] = truthful(self._copy(original), args, kwargs)
            outputs = copy(*args, **kwargs)
            nodes.append(Node(original, copy, args, kwargs, outputs))
            return outputs
        x = args[0]
        for part, weights in parts:
            inside = None if weights else self.take_apart(part)
            model = inside((x,), {}) if callable(inside) else None
            if model is not None:
                self.unfolded.append(model)
                x = _replay(self.trace(model), [x], nodes)
                continue
            y = part(x)
            part.set_weights(weights)
            nodes.append(Node(part, part, (x,), {}, y))
            x = y
        return x

    def _without_masks(self, operation, args, kwargs, nodes):
        """Takes masks off what an operation reads: it hands none on; the layers for it would."""

        def bare(x):
            if not isinstance(x, keras.KerasTensor) or _mask_of(x, [], operation.name) is None:
                return x
            layer = Unmask(name=self.unique(f"{operation.name}_unmask"))
            y = layer(x)
            nodes.append(Node(layer, layer, (x,), {}, y))
            return y

        return tree.map_structure(bare, (args, kwargs))

    def _with_mask(self, layer, args, kwargs, outputs, nodes):
        """Has the mask of what an unfolded layer computes travel with it as with the layer's own.

        Masks of what several inputs share travel by themselves.
        """
        if not getattr(layer, "supports_masking", False):
            return outputs
        if not args or not isinstance(args[0], keras.KerasTensor):
            return outputs
        mask = kwargs.get("query_mask", kwargs.get("mask"))
        if mask is None:
            mask = _mask_of(args[0], nodes, self.unique(f"{layer.name}_mask"))
        if "query_mask" in inspect.signature(layer.call).parameters:
            masks = [mask]  # Attention hands on that of its queries past its `compute_mask`.
        else:
            masks = self._computed_masks(layer, args[0], mask, nodes)
        flat = tree.flatten(outputs)
        for number, (y, m) in enumerate(zip(flat, masks, strict=False)):
            if m is not None:
                remask = Remask(name=self.unique(f"{layer.name}_remask"))
                flat[number] = remask([y, m])
                nodes.append(Node(remask, remask, ([y, m],), {}, flat[number]))
        return tree.pack_sequence_as(outputs, flat)

    def _computed_masks(self, layer, x, mask, nodes):
        """Returns what `layer.compute_mask` makes of a mask, one for each output."""
        given = [keras.Input(batch_shape=x.shape, dtype=x.dtype)]
        if mask is not None:
            given.append(keras.Input(batch_shape=mask.shape, dtype=mask.dtype))
        masks = tree.flatten(layer.compute_mask(given[0], *(given[1:] or [None])))
        made = [m for m in masks if m is not None and all(m is not g for g in given)]
        known = {id(given[-1]): mask}
        if made:
            graph = self.trace(keras.Model(given, made))
            values = _replay(graph, [x, mask][: len(given)], nodes)
            known.update(zip(map(id, made), tree.flatten(values), strict=True))
        return [None if m is None else known[id(m)] for m in masks]


def is_readable(layer) -> bool:
    """Whether `layer` is a model whose calls can be read: functional or sequential."""
    return bool(
        isinstance(layer, keras.Model)
        and getattr(layer, "inputs", None)
        and getattr(layer, "outputs", None)
    )


def _positional(layer, args, kwargs):
    """Passes the first argument by position, as layers are usually called."""
    first = next(iter(inspect.signature(layer.call).parameters))
    if args or first not in kwargs:
        return args, kwargs
    return (kwargs[first],), {name: x for name, x in kwargs.items() if name != first}


@keras.saving.register_keras_serializable(package="tfquant")
class ReadMask(keras.layers.Layer):
    """Returns the mask `(batch, time)` that travels with its input, as a tensor."""

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.is_masked = False

    def call(self, x, mask=None):
        """Returns the mask, of ones where there is none."""
        return keras.ops.ones(x.shape[:2], "bool") if mask is None else mask

    def compute_mask(self, inputs, previous_mask=None):
        """Returns none: a mask has no mask."""
        del inputs, previous_mask
        return None

    def compute_output_spec(self, x, mask=None):
        """Returns a KerasTensor; notes whether there is a mask."""
        self.is_masked = mask is not None
        return keras.KerasTensor(x.shape[:2], "bool")

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        return config


def _read_masks(layer, args, kwargs, nodes, unique):
    """Adds to `kwargs` the masks that Keras hands to `layer` beside several inputs.

    For an argument `value` it looks for a parameter `value_mask`. A single input's mask is among
    the arguments already.
    """
    parameters = inspect.signature(layer.call).parameters
    found = dict(kwargs)
    for name, x in [*zip(parameters, args, strict=False), *kwargs.items()]:
        mask_name = f"{name}_mask"
        if (
            mask_name not in parameters
            or not isinstance(x, keras.KerasTensor)
            or kwargs.get(mask_name) is not None
        ):
            continue
        mask = _mask_of(x, nodes, unique(f"{layer.name}_{mask_name}"))
        if mask is not None:
            found[mask_name] = mask
    if type(layer) is keras.layers.Multiply:  # What is hidden counts as 1.
        masks = [_mask_of(x, nodes, unique(f"{layer.name}_mask")) for x in args[0]]
        if any(mask is not None for mask in masks):
            found["masks"] = masks
    return found


def _mask_of(x, nodes, name):
    """Returns the mask that travels with `x`, as a tensor, or `None`."""
    reader = ReadMask(name=name)
    mask = reader(x)
    if not reader.is_masked:
        return None
    nodes.append(Node(reader, reader, (x,), {}, mask))
    return mask


class UniqueNames:
    """Hands out names that are unique, as those within a model must be."""

    def __init__(self):
        self._taken = set()

    def __call__(self, name: str) -> str:
        """Returns `name`, or `name_1`, ... where it is taken."""
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate


def clone_graph(model, clone_function, call_function=None, shapes=None):
    """Copies a functional or sequential model, compiled or not, as a functional one.

    Args:
        model: Built functional or sequential model.
        clone_function: As of `keras.models.clone_model`.
        call_function: Likewise.
        shapes: Shapes of the copy's inputs, where they are to be others than the model's.
    """
    if isinstance(model, keras.Sequential):
        view = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    else:
        # A view without compilation: `clone_model` would compile the copy as well.
        view = keras.Model(model.input, model.output, name=model.name)
    inputs = None
    if shapes is not None:
        flat = [
            keras.Input(batch_shape=shape, dtype=x.dtype, name=x.name)
            for x, shape in zip(tree.flatten(view.input), shapes, strict=True)
        ]
        inputs = tree.pack_sequence_as(view.input, flat)
    return keras.models.clone_model(
        view, inputs, clone_function=clone_function, call_function=call_function
    )


def _replay(graph, inputs, nodes):
    """Calls the layers of `graph` on other inputs, notes the calls and returns the outputs."""
    values = dict(zip(map(id, tree.flatten(graph.inputs)), inputs, strict=True))
    lookup = lambda x: values.get(id(x), x)  # noqa: E731
    for node in graph.nodes:
        args, kwargs = tree.map_structure(lookup, (node.args, node.kwargs))
        outputs = node.clone(*args, **kwargs)
        nodes.append(Node(node.layer, node.clone, args, kwargs, outputs))
        values.update(zip(map(id, tree.flatten(node.outputs)), tree.flatten(outputs), strict=True))
    return tree.map_structure(lookup, graph.outputs)


def tensors(structure) -> list:
    """Returns the KerasTensors in `structure`."""
    return [x for x in tree.flatten(structure) if isinstance(x, keras.KerasTensor)]


def real(xs) -> list:
    """Returns the tensors among `xs` that hold real numbers."""
    return [x for x in xs if keras.backend.is_float_dtype(x.dtype)]
