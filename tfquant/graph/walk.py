"""The layers of a model, and of the models in it."""

import keras


def all_layers(model) -> list:
    """Returns the layers of `model` and of the models in it, and its `keras.ops` operations."""
    found = []
    for operation in getattr(model, "operations", model.layers):
        if isinstance(operation, keras.layers.InputLayer):
            continue
        found.append(operation)
        if isinstance(operation, keras.Model):
            found.extend(all_layers(operation))
    return found
