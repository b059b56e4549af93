"""A functional model as a list of calls, read through Keras's public cloning."""

import collections
import dataclasses
import functools
import inspect
import itertools
import logging
import math

import keras
from keras import tree

from tfquant.graph.walk import is_readable
from tfquant.layers.copy import copy_layer, transfer_weights, undrawn
from tfquant.layers.integers import truthful
from tfquant.layers.parts import Remask, Unmask

_logger = logging.getLogger("tfquant")


@dataclasses.dataclass(eq=False)
class Node:
    """One call of a layer, and what is known of it.

    Attributes:
        layer: The layer of the user's model (or `keras.Operation`), or one that stands for it.
        clone: A built copy of it, without its weights' values; or `layer` itself.
        args: Positional arguments; tensors are KerasTensors of the graph.
        kwargs: Keyword arguments, likewise.
        outputs: Structure of KerasTensors.
        origin: The layer of the user's model that this call is of or was taken apart from.
        marked: Whether it is to be quantized, if it can be.
        part: Whether its layer is one of those that `origin` was unfolded into.
        unrolled: Whether it is of a part that may be called again and again, at every step.
        call: Number of the call of a layer that it was taken apart from; `None` for no such.
        own: Whether its config was given with the layer, by the user or by what took it apart.
        scheme: `Scheme` of the call, its width; `None` where it stays float.
        config: `QuantizeConfig` of the call; `None` where it stays float.
        batch_norm: Call of a batch norm that its kernel computes as well, or `None`.
        clamp: `(low, high)` that its kernel clips to in the end, or `None`.
        group: Name of the group of grids that its output agrees with, or `None`.
        algorithm: Name of the algorithm that chooses its integers, or `None`.
        norms: Pairs of the name of a norm that it is computed for, and of what its scheme says of
            norms.
        alias: Name of what it stands for, where that is no call any more; else `None`.
    """

    layer: object
    clone: object
    args: tuple
    kwargs: dict
    outputs: object
    origin: object = None
    marked: bool = False
    part: bool = False
    unrolled: bool = False
    call: int | None = None
    own: bool = False
    scheme: object = None
    config: object = None
    batch_norm: "Node | None" = None
    clamp: tuple | None = None
    group: str | None = None
    algorithm: str | None = None
    norms: tuple = ()
    alias: str | None = None

    @property
    def name(self) -> str:
        """Name of the layer, or of what stood in its place."""
        return self.alias or self.layer.name

    @property
    def inputs(self) -> list:
        """KerasTensors among the arguments."""
        return tensors((self.args, self.kwargs))

    @property
    def real_inputs(self) -> list:
        """KerasTensors of real numbers among the arguments."""
        return real(self.inputs)

    @property
    def reads_grids(self) -> bool:
        """Whether it takes its inputs as integers."""
        return self.config is not None and self.scheme.static and self.config.reads_grids

    def read_instead(self, replaced: dict) -> None:
        """Has the call read other tensors, those that `replaced` gives for its own."""
        self.args, self.kwargs = put_in_place((self.args, self.kwargs), replaced)

    def filled(self):
        """Returns `clone` with the weights of `layer`."""
        if self.clone is not self.layer:
            transfer_weights(self.layer, self.clone)
        return self.clone


@dataclasses.dataclass
class Graph:
    """A model as calls in an order in which they can run.

    Attributes:
        inputs: Structure of the input KerasTensors.
        outputs: Structure of the output KerasTensors.
        nodes: Calls, none of a model: nested models are read through.
        name: Name of the model.
        looked_up: Real tensors whose values are numbers of rows in a table, and have no grid.
        states: Pairs of the numbers of an input and an output, which the next call begins with.
    """

    inputs: object
    outputs: object
    nodes: list[Node]
    name: str
    looked_up: set = dataclasses.field(default_factory=set)
    states: list = dataclasses.field(default_factory=list)

    def producer(self, tensor) -> Node | None:
        """Returns the call that `tensor` comes from; `None` for an input."""
        return self._producers.get(tensor)

    def consumers(self, tensor) -> list[Node]:
        """Returns the calls that read `tensor`."""
        return self._consumers.get(tensor, [])

    def calls(self, layer) -> list[Node]:
        """Returns the calls of `layer`."""
        return self._calls.get(layer, [])

    def is_output(self, tensor) -> bool:
        """Whether `tensor` is an output of the model."""
        return any(x is tensor for x in tree.flatten(self.outputs))

    def only_reader(self, node) -> Node | None:
        """Returns the one call that reads what `node` computes, if nothing else does.

        It reads nothing else, and the model does not return what it reads.
        """
        outputs = tree.flatten(node.outputs)
        if len(outputs) != 1 or self.is_output(outputs[0]):
            return None
        readers = self.consumers(outputs[0])
        return readers[0] if len(readers) == 1 and len(readers[0].inputs) == 1 else None

    def forget_order(self) -> None:
        """Makes the look-ups above see that calls were changed."""
        for name in ("_producers", "_consumers", "_calls"):
            self.__dict__.pop(name, None)

    def run(self, inputs: list, call) -> object:
        """Calls what stands for each node on other tensors, in order.

        Args:
            inputs: KerasTensors, one for each of the graph's.
            call: Function of a node, its positional and its keyword arguments, that returns what
                takes the place of its outputs.

        Returns:
            Structure of what takes the place of the graph's outputs.
        """
        values = dict(zip(tree.flatten(self.inputs), inputs, strict=True))
        for node in self.nodes:
            args, kwargs = put_in_place((node.args, node.kwargs), values)
            outputs = tree.flatten(call(node, args, kwargs))
            values.update(zip(tree.flatten(node.outputs), outputs, strict=True))
        return put_in_place(self.outputs, values)

    def new_inputs(self):
        """Returns a structure of new inputs like the graph's."""
        return tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), self.inputs
        )

    def to_model(self) -> keras.Model:
        """Returns the float model that the calls amount to, with the weights of their layers."""

        def call(node, args, kwargs):
            outputs = node.filled()(*args, **kwargs)
            if node.batch_norm is not None:
                outputs = node.batch_norm.filled()(outputs)
            if node.clamp is not None:
                outputs = keras.layers.ReLU(max_value=node.clamp[1])(outputs)
            return outputs

        inputs = self.new_inputs()
        return keras.Model(inputs, self.run(tree.flatten(inputs), call), name=self.name)

    @functools.cached_property
    def _producers(self):
        return {x: node for node in self.nodes for x in tree.flatten(node.outputs)}

    @functools.cached_property
    def _consumers(self):
        readers = {}
        for node in self.nodes:
            for x in dict.fromkeys(node.inputs):
                readers.setdefault(x, []).append(node)
        return readers

    @functools.cached_property
    def _calls(self):
        calls = {}
        for node in self.nodes:
            calls.setdefault(node.layer, []).append(node)
        return calls


def trace(model, take_apart=lambda layer, origin: None) -> Graph:
    """Reads `model` call by call, nested models included.

    The model's own layers are not called and keep their state: copies are.

    Args:
        model: Built functional or sequential model.
        take_apart: Function of a layer, and of the layer of `model` that it was taken apart from
            (itself, if from none). It returns a list of pairs of a new layer and its weights that
            stand for it, called one after the other; or a function of the arguments of a call that
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
        self.unique, self.taken_apart = UniqueNames(), itertools.count()

    def trace(self, model, shapes=None, origin=None):
        """Returns the `Graph` of `model`.

        Args:
            model: Functional or sequential model.
            shapes: Shapes of its inputs, where they are to be others than the model's.
            origin: The user's layer that it stands for, or `None` for a model of the user's.
        """
        nodes = []
        clone = lambda layer: self._note(layer, origin or layer)  # noqa: E731
        call = lambda layer, *args, **kwargs: self._call(  # noqa: E731
            nodes, layer, args, kwargs, origin or layer
        )
        copy = clone_graph(model, clone, call, shapes)
        return Graph(copy.input, copy.output, nodes, model.name)

    def _note(self, layer, origin):
        """Notes what becomes of `layer`; the copy is made when the layer is called."""
        if layer not in self.parts and not is_readable(layer):
            parts = self.take_apart(layer, origin)
            if parts is not None and not callable(parts):
                parts = [(copy_layer(p, name=self.unique(p.name)), w) for p, w in parts]
            self.parts[layer] = parts
        return layer

    def _copy(self, layer):
        if layer not in self.copies:
            self.copies[layer] = copy_layer(layer, name=self.unique(layer.name))
        return self.copies[layer]

    def _call(self, nodes, layer, args, kwargs, origin):
        if is_readable(layer):
            inputs = tensors((args, kwargs))
            # A fixed length around a model of free length is the length inside.
            shapes = tuple(x.shape for x in inputs)
            if (layer, shapes) not in self.graphs:
                inside = None if layer is origin else origin
                self.graphs[layer, shapes] = self.trace(layer, shapes, inside)
            before = len(nodes)
            outputs = _replay(self.graphs[layer, shapes], inputs, nodes)
            calls = collections.defaultdict(lambda: next(self.taken_apart))
            for node in nodes[before:]:
                node.call = node.call if node.call is None else calls[node.call]
            return outputs
        args, kwargs = _positional(layer, args, kwargs)
        parts = self.parts[layer]
        if callable(parts):
            masks = _Masks(self, layer, origin, nodes)
            args, kwargs = masks.read(args, kwargs)
            outputs = self._run_parts(nodes, layer, parts(args, kwargs), args, kwargs, origin)
            if outputs is not None:
                return masks.handed_on(args, kwargs, outputs)
        if parts is None or callable(parts):
            copy = self.copies[layer] = truthful(self._copy(layer), args, kwargs)
            with undrawn(copy):
                outputs = copy(*args, **kwargs)
            nodes.append(Node(layer, copy, args, kwargs, outputs, origin))
            return outputs
        x = args[0]
        for part, weights in parts:
            inside = None if weights else self.take_apart(part, origin)
            model = inside((x,), {}) if callable(inside) else None
            if model is not None:
                x = _replay(self.trace(model, origin=origin), [x], nodes)
                continue
            with undrawn(part):
                y = part(x)
            part.set_weights(weights)
            nodes.append(Node(part, part, (x,), {}, y, origin))
            x = y
        return x

    def _run_parts(self, nodes, layer, model, args, kwargs, origin):
        """Calls the model that stands for a layer; returns its outputs, `None` if there is none."""
        if model is None or _has_open_reshapes(model):
            return None
        inputs, before = list(dict.fromkeys(tensors((args, kwargs)))), len(nodes)
        try:
            outputs = _replay(self.trace(model, origin=origin), inputs, nodes)
        except Exception as error:
            if _is_kerass(layer):
                raise
            # What is in a user's layer is his, and may be none of ours to copy or to call.
            _logger.debug("Layer '%s' cannot be taken apart: %s", layer.name, error)
            del nodes[before:]
            return None
        number = next(self.taken_apart)
        for node in nodes[before:]:
            node.call = number
        return outputs


def _has_open_reshapes(model) -> bool:
    """Whether a reshape cannot be told from its sizes: one of them is free beside the batch.

    `(None, -1, 8)` keeps the batch where no other reshape has made it part of an axis; `(3, -1, 8)`
    has it in the open size.
    """
    reshapes = [x for x in model.operations if type(x).__name__ == "Reshape"]
    reshapes = [x for x in reshapes if not isinstance(x, keras.layers.Layer)]
    folds = any(
        x.newshape[0] == -1 and _row(x.input) != _row(x.output) for x in reshapes if x.newshape
    )
    for operation in reshapes:
        shape, given = tuple(operation.newshape), operation.input.shape
        open_sizes = [n for n in shape[1:] if n in (None, -1)]
        more = shape.count(None) > tuple(given).count(None)
        batch_first = shape[0] in (None, -1)
        if len(open_sizes) > 1 or more or (folds and batch_first and -1 in open_sizes):
            return True
    return False


def _row(x):
    """Returns the number of values in a row of a tensor, `None` where a size is free."""
    return None if None in x.shape[1:] else math.prod(x.shape[1:])


def _is_kerass(layer):
    """Whether Keras or this package knows the layer or operation."""
    return type(layer).__module__.partition(".")[0] in ("keras", "tfquant")


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


class _Masks:
    """Masks that travel beside the tensors of one call of a layer that is unfolded.

    Args:
        tracer: `_Tracer`.
        layer: Layer or operation.
        origin: See `Node`.
        nodes: List that calls are noted in.
    """

    def __init__(self, tracer, layer, origin, nodes):
        self.tracer, self.layer, self.origin, self.nodes = tracer, layer, origin, nodes

    def read(self, args, kwargs):
        """Returns the arguments, with the masks that Keras hands to the layer beside several
        inputs: for an argument `value`, that of a parameter `value_mask`. A single input's mask is
        among the arguments already. An operation reads none.
        """
        if not isinstance(self.layer, keras.layers.Layer):
            return tree.map_structure(self._without, (args, kwargs))
        parameters = inspect.signature(self.layer.call).parameters
        found = dict(kwargs)
        for name, x in [*zip(parameters, args, strict=False), *kwargs.items()]:
            mask_name = f"{name}_mask"
            known = mask_name not in parameters or kwargs.get(mask_name) is not None
            mask = None if known or not isinstance(x, keras.KerasTensor) else self._of(x, mask_name)
            if mask is not None:
                found[mask_name] = mask
        if type(self.layer) is keras.layers.Multiply:  # What is hidden counts as 1.
            masks = [self._of(x, "mask") for x in args[0]]
            if any(mask is not None for mask in masks):
                found["masks"] = masks
        return args, found

    def _of(self, x, name):
        """Returns the mask that travels with `x`, as a tensor, or `None`."""
        reader = ReadMask(name=self.tracer.unique(f"{self.layer.name}_{name}"))
        mask = reader(x)
        return self._note(reader, x, mask) if reader.is_masked else None

    def _without(self, x):
        """Returns `x` without its mask: the layers for an operation would hand it on."""
        if not isinstance(x, keras.KerasTensor):
            return x
        reader = ReadMask()
        reader(x)
        if not reader.is_masked:
            return x
        unmask = Unmask(name=self.tracer.unique(f"{self.layer.name}_unmask"))
        return self._note(unmask, x, unmask(x))

    def _note(self, layer, x, outputs):
        self.nodes.append(Node(layer, layer, (x,), {}, outputs, self.origin))
        return outputs

    def handed_on(self, args, kwargs, outputs):
        """Returns `outputs` with the masks that the layer would have them travel with.

        Masks of what several inputs share travel by themselves.
        """
        layer = self.layer
        if not getattr(layer, "supports_masking", False):
            return outputs
        if not args or not isinstance(args[0], keras.KerasTensor):
            return outputs
        mask = kwargs.get("query_mask", kwargs.get("mask"))
        if mask is None:
            mask = self._of(args[0], "mask")
        if "query_mask" in inspect.signature(layer.call).parameters:
            masks = [mask]  # Attention hands on that of its queries past its `compute_mask`.
        else:
            masks = self._computed(args[0], mask)
        flat = tree.flatten(outputs)
        for number, (y, m) in enumerate(zip(flat, masks, strict=False)):
            if m is not None:
                remask = Remask(name=self.tracer.unique(f"{layer.name}_remask"))
                flat[number] = self._note(remask, [y, m], remask([y, m]))
        return tree.pack_sequence_as(outputs, flat)

    def _computed(self, x, mask):
        """Returns what `layer.compute_mask` makes of a mask, one for each output."""
        given = [keras.Input(batch_shape=x.shape, dtype=x.dtype)]
        if mask is not None:
            given.append(keras.Input(batch_shape=mask.shape, dtype=mask.dtype))
        masks = tree.flatten(self.layer.compute_mask(given[0], *(given[1:] or [None])))
        made = [m for m in masks if m is not None and all(m is not g for g in given)]
        known = {given[-1]: mask}
        if made:
            graph = self.tracer.trace(keras.Model(given, made), origin=self.origin)
            values = _replay(graph, [x, mask][: len(given)], self.nodes)
            known.update(zip(made, tree.flatten(values), strict=True))
        return [None if m is None else known[m] for m in masks]


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

    def call(node, args, kwargs):
        outputs = node.clone(*args, **kwargs)
        nodes.append(dataclasses.replace(node, args=args, kwargs=kwargs, outputs=outputs))
        return outputs

    return graph.run(inputs, call)


def tensors(structure) -> list:
    """Returns the KerasTensors in `structure`."""
    return [x for x in tree.flatten(structure) if isinstance(x, keras.KerasTensor)]


def put_in_place(structure, others: dict):
    """Returns `structure` with `others[x]` in the place of each KerasTensor `x` that is a key."""
    return tree.map_structure(
        lambda x: others.get(x, x) if isinstance(x, keras.KerasTensor) else x, structure
    )


def real(xs) -> list:
    """Returns the tensors among `xs` that hold real numbers."""
    return [x for x in xs if keras.backend.is_float_dtype(x.dtype)]
