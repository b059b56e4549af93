"""Layers that look things up in front of a model, cut off: no device has strings or hash tables."""

import keras
from keras import layers, tree

from tfquant.graph.graph import clone_graph, tensors

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
        model: Functional model.

    Returns:
        `(front, rest)`: a model from the inputs of `model` to what the rest reads, and the rest.
        Their layers are those of `model`. `front` is `None` where there are no lookups.
    """
    if not any(isinstance(layer, FRONT) for layer in model.layers):
        return None, model
    computed, looked_up, heads = set(), set(), {}

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        computed.update(tree.flatten(outputs))
        if isinstance(layer, FRONT):
            looked_up.update(tree.flatten(outputs))
        else:
            read = tensors((args, kwargs))
            heads.update(dict.fromkeys(x for x in read if x in looked_up or x not in computed))
        return outputs

    whole = clone_graph(model, lambda layer: layer, call)
    heads = list(heads)
    return keras.Model(whole.inputs, heads), keras.Model(heads, whole.output, name=model.name)
