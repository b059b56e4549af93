"""Subclassed models, read as functional ones."""

import keras

from tfquant.graph.graph import is_readable
from tfquant.graph.read import read


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
