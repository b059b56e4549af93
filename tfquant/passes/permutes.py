"""Permutations, moved behind others and cancelled."""

import dataclasses

from keras import activations, layers

from tfquant.graph.graph import Graph
from tfquant.wrappers import OperationLayer

# Operations on one tensor that compute each element by itself.
_FUNCTIONS = frozenset(
    {"Abs", "Clip", "Cos", "Exp", "Log", "LogSigmoid", "Negative", "Relu", "Rsqrt", "Sigmoid"}
    | {"Sign", "Silu", "Sin", "Softplus", "Sqrt", "Square", "Tanh"}
)

_ACTIVATIONS = frozenset(
    getattr(activations, name)
    for name in (
        *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu"),
        *("hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu"),
        *("sigmoid", "silu", "soft_shrink", "softplus", "softsign", "squareplus", "tanh"),
        "tanh_shrink",
    )
)


def delay_permutes(graph: Graph) -> None:
    """Moves permutations behind layers that compute each element by itself.

        relu(permute(x)) = permute(relu(x))

    Args:
        graph: `Graph`, changed in place.
    """
    for node in list(graph.nodes):
        before = [graph.producer(x) for x in node.inputs]
        if (
            not _is_elementwise(node.layer)
            or any(b is None or type(b.layer) is not layers.Permute for b in before)
            or len({b.layer.dims for b in before}) != 1
        ):
            continue
        moved = dataclasses.replace(before[0], outputs=node.outputs)
        node.read_instead({b.outputs: b.inputs[0] for b in before})
        node.outputs = node.clone(*node.args, **node.kwargs)
        moved.args = (node.outputs,)
        graph.nodes.insert(graph.nodes.index(node) + 1, moved)
        graph.forget_order()


def _is_elementwise(layer):
    operation = layer.operation if type(layer) is OperationLayer else layer
    if not isinstance(operation, layers.Layer):
        return type(operation).__name__ in _FUNCTIONS
    if type(layer) is layers.Activation:
        return layer.activation in _ACTIVATIONS
    return type(layer) in (
        layers.Add,
        layers.ELU,
        layers.LeakyReLU,
        layers.Maximum,
        layers.Minimum,
        layers.Multiply,
        layers.ReLU,
        layers.Subtract,
    )


def cancel_permutes(graph: Graph) -> None:
    """Removes permutations that undo the one before them.

    Args:
        graph: `Graph`, changed in place.
    """
    replaced = {}
    for node in graph.nodes:
        if replaced:
            node.read_instead(replaced)
        before = graph.producer(node.inputs[0]) if type(node.layer) is layers.Permute else None
        if before is None or type(before.layer) is not layers.Permute:
            continue
        inner, outer = before.layer.dims, node.layer.dims
        if [inner[axis - 1] for axis in outer] == sorted(inner) and not graph.is_output(
            node.outputs
        ):
            replaced[node.outputs] = before.inputs[0]
    graph.forget_order()
    _remove_unread(graph)


def _remove_unread(graph):
    """Removes permutations that nobody reads."""
    for node in reversed(list(graph.nodes)):
        moves = type(node.layer) is layers.Permute
        if moves and not graph.is_output(node.outputs) and not graph.consumers(node.outputs):
            graph.nodes.remove(node)
            graph.forget_order()
