"""Layers that look things up in front of a model, cut off: no device has strings or hash tables."""

import keras
from keras import layers, tree

FRONT = (
    layers.HashedCrossing,
    layers.Hashing,
    layers.IntegerLookup,
    layers.StringLookup,
    layers.TextVectorization,
)


def split_front(model):
    """Splits a model behind the lookups at its inputs.

    Args:
        model: Functional model. A lookup must be called once.

    Returns:
        `(front, rest)`: a model from the inputs of `model` to what the rest reads, and the rest.
        Their layers are those of `model`. `front` is `None` where there are no lookups.
    """
    lookups = {layer.name: layer for layer in model.layers if isinstance(layer, FRONT)}
    if not lookups:
        return None, model
    read = set()
    for entry in model.get_config()["layers"]:
        if entry["name"] not in lookups:
            read |= _sources(entry["inbound_nodes"])
    heads = [x for x in model.inputs if _layer_name(model, x) in read]
    heads += [layer.output for name, layer in lookups.items() if name in read]
    return keras.Model(model.inputs, heads), keras.Model(heads, model.output, name=model.name)


def _layer_name(model, x):
    """Returns the name of the input layer of `x`."""
    found = (layer for layer in model.layers if isinstance(layer, layers.InputLayer))
    return next(layer.name for layer in found if tree.flatten(layer.output)[0] is x)


def _sources(structure):
    """Returns the names of the layers whose outputs are among the arguments of calls."""
    if isinstance(structure, dict):
        if "keras_history" in structure:
            return {structure["keras_history"][0]}
        structure = list(structure.values())
    if isinstance(structure, (list, tuple)):
        return set().union(*map(_sources, structure))
    return set()
