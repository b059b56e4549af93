"""Layers and models of the user's own, read by calling them on symbolic tensors."""

import logging

import keras
from keras import tree

from tfquant.registry.elementwise import OutputConfig
from tfquant.rewrite.annotate import QuantizeAnnotate
from tfquant.rewrite.graph import is_readable
from tfquant.rewrite.read import OPEN, read

_logger = logging.getLogger("tfquant")

# Parts of norms. In 8 bits they lose what they measure: a layer made of them alone stays whole.
_FLOAT_OPERATIONS = frozenset({"Log", "Norm", "Power", "Rsqrt", "Sqrt", "Square", "Std", "Var"})


def unfold_composite(layer, scheme):
    """Reads what the `call` of a composite layer consists of; see `tfquant.rewrite.unfold`.

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
        given = [x for x in tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        return outputs if _is_worthwhile(keras.Model(given, outputs)) else None

    return call


def _is_worthwhile(model):
    operations = [x for x in model.operations if not isinstance(x, keras.layers.InputLayer)]
    has_weights = any(isinstance(x, keras.layers.Layer) and x.weights for x in operations)
    return has_weights or not any(type(x).__name__ in _FLOAT_OPERATIONS for x in operations)


def readable(model):
    """Returns `model`, or the functional model that a subclassed one amounts to.

    Args:
        model: Keras model. A subclassed one must be built.

    Raises:
        ValueError: If a subclassed model is not built, or its `call` needs real tensors.
    """
    if not isinstance(model, keras.Model) or isinstance(model, keras.Sequential):
        return model
    if is_readable(model):
        return model
    config = model.get_build_config() if model.built else None
    if not config or "input_shape" not in config:
        raise ValueError(
            f"Model '{model.name}' ({type(model).__name__}) is not built: call it on data once."
        )
    inputs = _inputs(config["input_shape"])
    try:
        outputs = read(model, (inputs,), {})
        return keras.Model(inputs, outputs, name=model.name)
    except Exception as error:
        raise ValueError(
            f"A model whose `call(inputs)` consists of Keras layers and keras.ops is expected. "
            f"Received: '{model.name}' ({type(model).__name__}), whose `call` cannot be read on "
            f"symbolic tensors: {error}"
        ) from error


def _inputs(shapes):
    """Returns inputs, of any batch size, for the shapes that a model was built with."""
    if isinstance(shapes, dict):
        return {name: keras.Input(shape[1:], name=name) for name, shape in shapes.items()}
    if isinstance(shapes[0], (tuple, list)):
        return [keras.Input(shape[1:]) for shape in shapes]
    return keras.Input(shapes[1:])
