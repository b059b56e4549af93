"""Subclassed models, read as functional ones."""

import logging

import keras
from keras import layers, tree

from tfquant.graph.graph import clone_graph, tensors
from tfquant.graph.walk import is_readable
from tfquant.layers import known
from tfquant.reading.own import is_composite
from tfquant.reading.read import read

_logger = logging.getLogger("tfquant")

# Operations that read an argument as something else than real numbers: which argument, and its
# dtype. The dtype of what a layer looks up is that of Keras's own inputs of such layers.
_READS = {
    "BitwiseAnd": (None, "int32"),
    "BitwiseInvert": (None, "int32"),
    "BitwiseLeftShift": (None, "int32"),
    "BitwiseNot": (None, "int32"),
    "BitwiseOr": (None, "int32"),
    "BitwiseRightShift": (None, "int32"),
    "BitwiseXor": (None, "int32"),
    "LogicalAnd": (None, "bool"),
    "LogicalNot": (None, "bool"),
    "LogicalOr": (None, "bool"),
    "LogicalXor": (None, "bool"),
    "MultiHot": (0, "int32"),
    "OneHot": (0, "int32"),
    "Take": (1, "int32"),
    "TakeAlongAxis": (1, "int32"),
    "Where": (0, "bool"),
}
_LOOKUPS = {
    layers.CategoryEncoding: "int32",
    layers.Embedding: "int32",
    layers.Hashing: "string",
    layers.IntegerLookup: "int64",
    known.ReversibleEmbedding: "int32",
    layers.StringLookup: "string",
    layers.TextVectorization: "string",
}

# Operations that hand on the kind of number that they are given.
_PASSES_ON = frozenset(
    {
        "Abs",
        "Absolute",
        "Add",
        "BroadcastTo",
        "Clip",
        "Concatenate",
        "ExpandDims",
        "Flip",
        "GetItem",
        "Maximum",
        "Minimum",
        "Mod",
        "Moveaxis",
        "Multiply",
        "Pad",
        "Permute",
        "Repeat",
        "RepeatVector",
        "Reshape",
        "Roll",
        "Split",
        "Squeeze",
        "Stack",
        "Subtract",
        "Swapaxes",
        "Tile",
        "Transpose",
        "Unstack",
    }
)

_CANDIDATES = ("float32", "int32", "bool", "string")


def readable(model):
    """Returns `model`, or the functional model that a subclassed one amounts to.

    Keras notes the shapes that a subclassed model was built with, and its inputs if it was called
    on a `keras.Input`. A dtype that it did not note is that with which the `call` reads an input:
    `int32` for what is looked up in a table, `bool` for a condition, else `float32`.

    Args:
        model: Keras model. A subclassed one must be built.

    Raises:
        ValueError: If a subclassed model is not built, or its `call` needs real tensors.
    """
    if not isinstance(model, keras.Model) or isinstance(model, keras.Sequential):
        return model
    if is_readable(model):
        return model
    given = _symbolic_inputs(model)
    config = model.get_build_config() if model.built else None
    if given is None and (not config or "input_shape" not in config):
        raise ValueError(
            f"Model '{model.name}' ({type(model).__name__}) is not built: call it on data once."
        )
    try:
        if given is not None:
            return _read_on(model, given)
        return _read_with_dtypes(model, config["input_shape"])
    except Exception as error:
        raise ValueError(
            f"A model whose `call(inputs)` consists of Keras layers and keras.ops is expected. "
            f"Received: '{model.name}' ({type(model).__name__}), whose `call` cannot be read on "
            f"symbolic tensors: {error}"
        ) from error


def _symbolic_inputs(model):
    """Returns new inputs like those that the model was first called on, if they were symbolic."""
    try:
        called_on = model.input
    except (AttributeError, ValueError):  # As Keras says that there was no such call.
        return None
    like = lambda x: keras.Input(x.shape[1:], dtype=x.dtype, name=x.name)  # noqa: E731
    return tree.map_structure(like, called_on)


def _read_on(model, inputs):
    return keras.Model(inputs, read(model, (inputs,), {}), name=model.name)


def _read_with_dtypes(model, shapes):
    """Returns the functional model, its inputs of the dtypes that it reads them with."""
    first = None
    for candidate in _CANDIDATES:
        try:
            found = _read_on(model, _inputs(shapes, candidate))
        except Exception as error:  # Whatever the user's code raises on inputs of that dtype.
            first = first or error
            continue
        wanted = _dtypes_read(found)
        if wanted == [x.dtype for x in found.inputs]:
            return found
        return _read_on(model, _inputs(shapes, iter(wanted)))
    raise first


def _inputs(shapes, dtypes):
    """Returns inputs, of any batch size, for the shapes that a model was built with.

    Args:
        shapes: Structure of shapes.
        dtypes: Dtype of all of them, or an iterator of one for each.
    """
    of_next = lambda: dtypes if isinstance(dtypes, str) else next(dtypes)  # noqa: E731
    if isinstance(shapes, dict):
        # In Keras's order of the inputs of a dict: that of its keys.
        made = {n: keras.Input(shapes[n][1:], dtype=of_next(), name=n) for n in sorted(shapes)}
        return {name: made[name] for name in shapes}
    if isinstance(shapes[0], (tuple, list)):
        return [keras.Input(shape[1:], dtype=of_next()) for shape in shapes]
    return keras.Input(shapes[1:], dtype=of_next())


def _dtypes_read(model):
    """Returns with which dtype each input of a functional model is read."""
    readers = _Readers(model)
    return [readers.dtype(x) or "float32" for x in readers.inputs]


class _Readers:
    """Who reads each tensor of a model, what its layers consist of included.

    Args:
        model: Functional model.
    """

    def __init__(self, model):
        self.of = {}
        self.inputs = tree.flatten(clone_graph(model, lambda layer: layer, self._call).input)

    def _call(self, layer, *args, **kwargs):
        given = list(dict.fromkeys(tensors((args, kwargs))))
        outputs = None
        if isinstance(layer, keras.Model) or is_composite(layer):
            try:
                outputs = read(layer, args, kwargs)
            except Exception as error:  # Whatever the user's code raises on symbolic tensors.
                _logger.debug("Layer '%s' cannot be read: %s", layer.name, error)
        if outputs is None:
            outputs = layer(*args, **kwargs)
            for x in given:
                self._note(x, layer, [*args, *kwargs.values()], outputs)
            return outputs
        copy = clone_graph(keras.Model(given, outputs), lambda layer: layer, self._call)
        # What is read inside is read outside, and the other way round behind it.
        for before, after in ((given, copy.input), (copy.output, outputs)):
            for x, y in zip(tree.flatten(before), tree.flatten(after), strict=True):
                self._note(x, None, [x], y)
        return outputs

    def _note(self, tensor, layer, arguments, outputs):
        self.of.setdefault(tensor, []).append((layer, arguments, outputs))

    def dtype(self, tensor):
        """Returns the dtype, other than of real numbers, that `tensor` is read with, or `None`."""
        for layer, arguments, outputs in self.of.get(tensor, ()):
            if type(layer) in _LOOKUPS:
                return _LOOKUPS[type(layer)]
            name = type(layer).__name__
            place, dtype = _READS.get(name, (None, None))
            at_place = place is None or any(x is tensor for x in arguments[place : place + 1])
            if dtype and at_place:
                return dtype
            if layer is None or name in _PASSES_ON:
                found = (self.dtype(y) for y in tree.flatten(outputs))
                dtype = next((d for d in found if d), None)
                if dtype:
                    return dtype
        return None
