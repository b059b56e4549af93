"""Layers that are called on integers or truth values, and say so."""

import functools

import keras
from keras import ops, tree

# Layers that LiteRT computes for real numbers only. Integers below 2**24 are some.
_POOLING = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D)


@keras.saving.register_keras_serializable(package="tfquant")
class OfIntegers(keras.layers.Layer):
    """Calls `layer`, and knows the dtype of what it returns.

    Many layers of Keras announce an output of their own float dtype whatever they are called on:
    `Add` of two `int32` tensors is said to be `float32`, and is `int32`.

    Args:
        layer: Keras layer.
    """

    def __init__(self, layer, **kwargs):
        kwargs.setdefault("name", layer.name)
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.supports_masking = layer.supports_masking

    def build(self, *args, **kwargs):
        """Leaves building to the layer's own first call."""
        self.built = True

    def call(self, *args, **kwargs):
        """Calls the layer."""
        if type(self.layer) is keras.layers.Add:
            return functools.reduce(add, args[0])
        if type(self.layer) in _POOLING:
            (x,) = args
            return ops.cast(self.layer(ops.cast(x, "float32")), x.dtype)
        return self.layer(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        """Returns the layer's."""
        if all(mask is None for mask in tree.flatten(previous_mask)):
            return None
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_spec(self, *args, **kwargs):
        """Returns KerasTensors as tracing the call makes them."""
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        return {**config, "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


def truthful(layer, args, kwargs):
    """Returns `layer`, or `OfIntegers` of it where it would announce integers as real numbers.

    Args:
        layer: Keras layer or `keras.Operation`.
        args: Positional arguments of a call of it.
        kwargs: Keyword arguments of the call.
    """
    given = [x for x in tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
    of_reals = any(keras.backend.is_float_dtype(x.dtype) for x in given)
    if of_reals or not given or isinstance(layer, OfIntegers):
        return layer
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.Model):
        return layer
    dtypes = lambda spec: [x.dtype for x in tree.flatten(spec)]  # noqa: E731
    wrapped = OfIntegers(layer)
    try:
        said, traced = (x.compute_output_spec(*args, **kwargs) for x in (layer, wrapped))
    except TypeError:  # A layer whose `compute_output_spec` does not take what its `call` takes.
        return layer
    return layer if dtypes(said) == dtypes(traced) else wrapped


def add(a, b):
    """Returns `a + b`, in a form that Keras does not take for a bias: LiteRT has none of integers.

    Args:
        a: Tensor or constant.
        b: Likewise.
    """
    kind = keras.backend.result_type(*(getattr(x, "dtype", type(x)) for x in (a, b)))
    return ops.subtract(a, ops.negative(b)) if "int" in kind else ops.add(a, b)
