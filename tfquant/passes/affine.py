"""Constant factors and shifts that follow each other, made one."""

import numpy as np

from tfquant.graph.graph import Graph
from tfquant.layers.copy import copy_layer
from tfquant.layers.parts import ChannelAffine


def merge_affine(graph: Graph) -> None:
    """Makes one of constant factors and shifts that follow each other.

        (x * g0 + b0) * g1 + b1 = x * (g0 * g1) + (b0 * g1 + b1)

    Preprocessing layers in front of a network often come in threes.

    Args:
        graph: `Graph`, changed in place.
    """
    for node in list(graph.nodes):
        before = graph.producer(node.inputs[0]) if len(node.inputs) == 1 else None
        if (
            before is None
            or not all(_is_constant_affine(n) for n in (before, node))
            or len(graph.consumers(before.outputs)) != 1
            or graph.is_output(before.outputs)
        ):
            continue
        (g0, b0), (g1, b1) = (
            [w.astype(np.float64) for w in n.layer.get_weights()[:2]] for n in (before, node)
        )
        merged = copy_layer(node.layer)
        merged.build(before.inputs[0].shape)
        merged.set_weights([g0 * g1, b0 * g1 + b1, *node.layer.get_weights()[2:]])
        node.layer = node.clone = merged
        node.args = before.args
        graph.nodes.remove(before)
        graph.forget_order()


def _is_constant_affine(node):
    return isinstance(node.layer, ChannelAffine) and not node.layer.trainable
