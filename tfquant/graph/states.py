"""States that a model takes as inputs and returns as outputs, for the next call to go on from."""

import inspect

from keras import layers, tree

from tfquant.graph.graph import tensors, trace
from tfquant.graph.walk import all_layers

RECURRENT = (layers.RNN, layers.Bidirectional)
CELLS = (layers.GRUCell, layers.LSTMCell, layers.SimpleRNNCell, layers.StackedRNNCells)


def carried_states(model) -> list[tuple[int, int]]:
    """Returns which outputs of a model are the states that its inputs are in the next call.

    They are those of recurrent layers (or cells) that start from inputs of the model, and of which
    the model returns what `return_state` gives.

    Args:
        model: Functional model.

    Returns:
        Pairs of an input's number and an output's.
    """
    if not any(isinstance(_marked(layer), (*RECURRENT, *CELLS)) for layer in all_layers(model)):
        return []
    graph = trace(model)
    inputs, outputs = tree.flatten(graph.inputs), tree.flatten(graph.outputs)
    number = lambda x, found: next((n for n, y in enumerate(found) if y is x), None)  # noqa: E731
    pairs = [
        (number(old, inputs), number(new, outputs))
        for node in graph.nodes
        for old, new in _states(node)
    ]
    return [pair for pair in pairs if None not in pair]


def _states(node):
    """Returns pairs of states in front of a call and behind it."""
    layer = _marked(node.layer)
    if not isinstance(layer, CELLS) and not (
        isinstance(layer, RECURRENT) and getattr(layer, "return_state", False)
    ):
        return []
    _, name, *_ = inspect.signature(layer.call).parameters
    old = node.args[1] if len(node.args) > 1 else node.kwargs.get(name)
    old, new = tensors(old), tree.flatten(node.outputs)[1:]
    return list(zip(old, new, strict=True)) if len(old) == len(new) else []


def _marked(layer):
    """Returns the layer that a mark is on, or the layer itself."""
    known = isinstance(layer, (*RECURRENT, *CELLS))
    return layer if known else getattr(layer, "layer", layer)
