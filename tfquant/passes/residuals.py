"""Sums that only norms read, left float."""

from keras import layers, tree

from tfquant.graph.graph import Graph
from tfquant.registry.keras_layers import FLOAT


def keep_residuals_float(graph: Graph) -> None:
    """Leaves sums float that only norms read, directly or through further such sums.

    The norm is float and reads the sum as it is. The residual stream of a transformer, with its few
    huge channels, is then never rounded: only what matrices multiply is.

    Args:
        graph: `Graph`; configs of its nodes are taken away.
    """
    for node in reversed(graph.nodes):
        outputs = tree.flatten(node.outputs)
        readers = [reader for x in outputs for reader in graph.consumers(x)]
        if (
            type(node.layer) is layers.Add
            and not node.own
            and readers
            and not any(graph.is_output(x) for x in outputs)
            and all(_is_float_residual(reader) for reader in readers)
        ):
            node.config = None


def _is_float_residual(node):
    is_sum = type(node.layer) is layers.Add and node.config is None
    return is_sum or type(node.layer) in FLOAT
