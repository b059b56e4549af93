"""Clamps that read one tensor, made one."""

from keras import tree

from tfquant.graph.graph import Graph
from tfquant.registry.keras_layers import clamp_of


def merge_clamps(graph: Graph, may_merge) -> None:
    """Makes one call of all ReLUs of one kind that read the same tensor.

        relu(x), relu(x)  ->  y = relu(x), y

    Cells of a NASNet start with a ReLU each. The TFLite converter makes one of them whether asked
    or not, and draws it into the kernel in front, whose output is then rounded once and not twice.

    Args:
        graph: `Graph`, changed in place.
        may_merge: Function of a call: whether the user left it to us.
    """
    first, merged, kept = {}, {}, []
    for node in graph.nodes:
        _replace(node, merged)
        clamp = clamp_of(node.layer) if may_merge(node) else None
        key = clamp and (id(node.inputs[0]), clamp)
        if clamp and key in first:
            merged[id(node.outputs)] = first[key].outputs
            continue
        if clamp:
            first[key] = node
        kept.append(node)
    graph.outputs = tree.map_structure(lambda x: merged.get(id(x), x), graph.outputs)
    graph.nodes[:] = kept
    graph.forget_order()


def _replace(node, merged):
    """Has a call read what stands for the tensors of merged calls."""
    node.args, node.kwargs = tree.map_structure(
        lambda x: merged.get(id(x), x), (node.args, node.kwargs)
    )
