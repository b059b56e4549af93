"""Layers and models of the user's own, read by calling them on symbolic tensors."""

import logging

import keras

from tfquant.configs.elementwise import OutputConfig
from tfquant.reading.own import OPEN
from tfquant.reading.read import read
from tfquant.wrappers import QuantizeAnnotate

_logger = logging.getLogger("tfquant")

# Parts of norms. In 8 bits they lose what they measure: a layer made of them alone stays whole.
_FLOAT_OPERATIONS = frozenset({"Log", "Norm", "Power", "Rsqrt", "Sqrt", "Square", "Std", "Var"})


def unfold_composite(layer, scheme):
    """Reads what the `call` of a composite layer consists of; see `tfquant.unfold.unfold`.

    `call` runs once on symbolic tensors, for inference: what it does in training only is left out.
    A layer stays whole if its `call` needs real tensors, or contains no layer with a kernel and
    computes a norm.
    """
    config = OutputConfig(scheme.activations) if scheme.static else None
    mark = lambda constant: QuantizeAnnotate(constant, config)  # noqa: E731

    def call(*args, training=None, **kwargs):
        del training
        kwargs = {name: x for name, x in kwargs.items() if x is not None}
        if type(layer) in OPEN and kwargs:
            return None  # Masks are large numbers in scores: they would ruin the range.
        try:
            outputs = read(layer, args, kwargs, mark)
        except Exception as error:  # Whatever the user's code raises on symbolic tensors.
            _logger.debug("Layer '%s' cannot be read: %s (%s)", layer.name, error, error.__cause__)
            return None
        return outputs

    return call


def is_worthwhile(model) -> bool:
    """Whether what a composite layer consists of gains by being quantized part by part."""
    operations = [x for x in model.operations if not isinstance(x, keras.layers.InputLayer)]
    has_weights = any(isinstance(x, keras.layers.Layer) and x.weights for x in operations)
    return has_weights or not any(type(x).__name__ in _FLOAT_OPERATIONS for x in operations)
