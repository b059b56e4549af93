"""Models that cannot be quantized, said clearly and early."""

import keras
import numpy as np

from tfquant.graph.walk import all_layers, is_readable
from tfquant.wrappers import Quantize, QuantizeWrapper


def check_model(model) -> None:
    """Raises a clear error if `model` cannot be quantized.

    Args:
        model: What the user passed.

    Raises:
        TypeError: If it is not a Keras model.
        ValueError: If it is not built, subclassed without a graph, quantized already, or holds
            weights that are not finite.
    """
    check_is_model(model)
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built: its input shape is not known. Add "
            "`keras.Input(shape)` as its first layer, or call it on data once."
        )
    _check_readable(model)
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Layer) and not is_readable(layer):
            _check_layer(model, layer)


def check_is_model(model) -> None:
    """Raises a `TypeError` if `model` is not a Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"A Keras 3 model is expected. Received: {model!r} of type "
            f"{type(model).__module__}.{type(model).__name__}."
        )


def _check_readable(model):
    if not is_readable(model):
        raise ValueError(
            f"A functional or sequential model is expected. Received: '{model.name}', a subclass "
            f"of keras.Model ({type(model).__name__}) whose calls cannot be read. Build the same "
            "layers as `keras.Model(inputs, outputs)`."
        )


def _check_layer(model, layer):
    if isinstance(layer, (QuantizeWrapper, Quantize)):
        raise ValueError(
            f"Model '{model.name}' is quantized already: it contains '{layer.name}'. A float "
            "model is expected."
        )
    if getattr(layer, "quantization_mode", None) is not None:
        raise ValueError(
            f"Model '{model.name}' is quantized already by Keras: layer '{layer.name}' is "
            f"{layer.quantization_mode}. A float model is expected."
        )
    check_finite(layer)


def check_finite(layer) -> None:
    """Raises a `ValueError` if weights of `layer` are NaN or infinite."""
    for variable in layer.weights:
        values = variable.numpy()
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ValueError(
                f"Weights must be finite. Received: NaN or Inf in '{variable.path}' of layer "
                f"'{layer.name}'."
            )
