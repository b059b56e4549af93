"""Layers whose `call` is read: those of types that only their authors know."""

import keras

from tfquant.graph.walk import is_readable

_KERAS_LAYERS = frozenset(x for x in vars(keras.layers).values() if isinstance(x, type))

# Of Keras's own layers, those whose `call` is made of operations that a device has.
OPEN = (keras.layers.Attention, keras.layers.AdditiveAttention, keras.layers.Lambda)


def is_composite(layer) -> bool:
    """Whether `layer` is of a type that only its author knows."""
    if not isinstance(layer, keras.layers.Layer):
        return False
    if isinstance(layer, keras.Model):
        return not is_readable(layer)
    own = type(layer).__module__.partition(".")[0] == "tfquant"
    return type(layer) in OPEN or not (own or type(layer) in _KERAS_LAYERS)
