"""The float `.tflite` file that everything is written into."""

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfquant.rewrite.lower import Lowered


def convert_float(lowered: Lowered, batch_size: int | None) -> bytes:
    """Converts the float model of `lowered`.

    The weights enter the graph as constants, so that the converter has no variables to freeze.

    Args:
        lowered: From `tfquant.rewrite.lower`.
        batch_size: Fixed batch dimension, `None` for a free one.

    Returns:
        Bytes of the file; its inputs and outputs have the order of the model's.
    """
    model = lowered.model
    constants = [(v, v.numpy()) for v in model.variables]
    specs = [
        tf.TensorSpec((batch_size, *x.shape[1:]), x.dtype, name=_identifier(x.name))
        for x in model.inputs
    ]

    @tf.function(input_signature=specs, autograph=False)
    def call(*arrays):
        frozen = [(variable, tf.constant(value)) for variable, value in constants]
        with keras.StatelessScope(state_mapping=frozen, initialize_variables=False):
            outputs = model(tree.pack_sequence_as(model.input, arrays), training=False)
        return tree.flatten(outputs)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()])
    return converter.convert()


def probe(lowered: Lowered, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the float values of every point of `lowered`, and of the model's outputs.

    Args:
        lowered: From `tfquant.rewrite.lower`.
        rows: One array for each input.

    Returns:
        `(points, outputs)`: lists of arrays.
    """
    model = lowered.model
    inner = [point.tensor for point in lowered.points]
    watched = keras.Model(model.inputs, [*inner, *tree.flatten(model.output)])
    values = tf.function(watched, autograph=False)([tf.constant(x) for x in rows], training=False)
    values = [value.numpy() for value in values]
    return values[: len(inner)], values[len(inner) :]


def _identifier(name):
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)
