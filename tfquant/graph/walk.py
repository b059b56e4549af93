"""The layers of a model, and of the models in it."""

from collections.abc import Iterator

import keras


def walk(model, inside: str = "") -> Iterator[tuple[str, object]]:
    """Yields the layers of `model` and of the models in it, and its `keras.ops` operations.

    A nested model comes before what is in it; inputs are left out.

    Args:
        model: Keras model.
        inside: Names of the models around it, each with a `/` behind it.

    Yields:
        Pairs of the names of the models that it is in, such as `"encoder/"`, and a layer or
        operation.
    """
    for operation in getattr(model, "operations", model.layers):
        if isinstance(operation, keras.layers.InputLayer):
            continue
        yield inside, operation
        if isinstance(operation, keras.Model):
            yield from walk(operation, f"{inside}{operation.name}/")


def all_layers(model) -> list:
    """Returns the layers of `model` and of the models in it, and its `keras.ops` operations."""
    return [layer for _, layer in walk(model)]


def models(model) -> Iterator[keras.Model]:
    """Yields `model` and the models in it."""
    yield model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from models(layer)


def leaves(model) -> Iterator[keras.layers.Layer]:
    """Yields the layers of `model` and of the models in it, inputs among them, models not."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def is_readable(layer) -> bool:
    """Whether `layer` is a model whose calls can be read: functional or sequential."""
    return bool(
        isinstance(layer, keras.Model)
        and getattr(layer, "inputs", None)
        and getattr(layer, "outputs", None)
    )
