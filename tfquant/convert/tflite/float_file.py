"""The float `.tflite` file that everything is written into."""

import re

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfquant.convert.tflite.flatbuffer import File
from tfquant.layers.plain import Barrier, PlainSum
from tfquant.rewrite.lower import Lowered

LIMIT = np.float32(Barrier.LIMIT)


# Layers whose operators know no sizes of images.
_ANY_SIZE = (
    keras.layers.Activation,
    keras.layers.AveragePooling2D,
    keras.layers.Concatenate,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dropout,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.Identity,
    keras.layers.InputLayer,
    keras.layers.MaxPooling2D,
    keras.layers.Multiply,
    keras.layers.ReLU,
    keras.layers.ZeroPadding2D,
    Barrier,
    PlainSum,
)


def convert_float(lowered: Lowered, batch_size: int | None, rows: list[np.ndarray]) -> File:
    """Converts the float model of `lowered`.

    The weights enter the graph as constants, so that the converter has no variables to freeze.

    Args:
        lowered: From `tfquant.rewrite.lower`.
        batch_size: Fixed batch dimension, `None` to leave free dimensions free.
        rows: One array for each input: what free lengths become beside a fixed batch.

    Returns:
        `File` whose inputs and outputs have the order of the model's.

    Raises:
        ValueError: If LiteRT has no operators for a layer that stays float.
    """
    model = lowered.model
    fixed = any(type(layer) not in _ANY_SIZE for layer in model.layers)
    constants = [(v, v.numpy()) for v in model.variables]
    specs = [
        tf.TensorSpec(_shape(x, batch_size, array, fixed), x.dtype, name=_identifier(x.name))
        for x, array in zip(model.inputs, rows, strict=True)
    ]

    @tf.function(input_signature=specs, autograph=False)
    def call(*arrays):
        frozen = [(variable, tf.constant(value)) for variable, value in constants]
        with keras.StatelessScope(state_mapping=frozen, initialize_variables=False):
            outputs = model(tree.pack_sequence_as(model.input, arrays), training=False)
        return tree.flatten(outputs)

    concrete = call.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    file = File(_converted(converter, concrete, model))
    file.remove(_is_barrier)
    return file


def _shape(x, batch_size, array, fixed):
    """Returns the shape of an input of the file.

    With a free length of a sequence the converter leaves the bias of a dense layer behind a
    reshape, where no kernel applies it. The sizes of images do no harm where no layer computes
    with them.
    """
    if batch_size is None:
        return x.shape
    if len(x.shape) > 3 and not fixed:
        return batch_size, *x.shape[1:]
    return batch_size, *(n or size for n, size in zip(x.shape[1:], array.shape[1:], strict=True))


def _is_barrier(file, op):
    """Whether an operator stands for a `Barrier`."""
    return op.name == "MINIMUM" and any(
        file.is_constant(i) and file.constant(i).size == 1 and file.constant(i) == LIMIT
        for i in op.inputs
        if file.type(i) == "FLOAT32"
    )


def _converted(converter, function, model):
    """Converts, or says which layers LiteRT has no operators for."""
    try:
        return converter.convert()
    except Exception as error:  # The converter's own error type is not public.
        missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        if not missing:
            raise
        places = [op.name for op in function.graph.get_operations() if op.type in missing]
        named = [x.name for x in model.layers if any(_is_inside(x.name, p) for p in places)]
        raise ValueError(
            f"LiteRT has no operator for {', '.join(missing)}. Received: layers "
            f"{named or places}. Compute what they do before the model or behind it."
        ) from error


def probe(lowered: Lowered, rows, points, known=()) -> list[np.ndarray]:
    """Returns the float values of points.

    Args:
        lowered: From `tfquant.rewrite.lower`.
        rows: One array for each input.
        points: The points.
        known: Pairs of another point and its value, which is computed with in place of the inputs.
    """
    pairs = [*zip(lowered.model.inputs, rows, strict=True), *((p.tensor, v) for p, v in known)]
    given = {id(tensor): (tensor, value) for tensor, value in pairs}
    tensors, values = zip(*given.values(), strict=True)
    watched = keras.Model(list(tensors), [point.tensor for point in points])
    # Eagerly: to trace a graph for one row takes longer.
    found = watched([tf.constant(value) for value in values], training=False)
    return [np.asarray(value) for value in found]


def _identifier(name):
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def _is_inside(layer, place):
    """Whether an operation of the graph, `model/layer_1/Operation`, is one of the layer's."""
    return re.search(rf"(^|/){re.escape(layer)}(_\d+)?/", place) is not None
