"""Sums that only norms read: float in front of float norms, of 16 bits in front of others."""

import dataclasses

from keras import layers, tree

from tfquant.configs.elementwise import SumConfig
from tfquant.configs.parts import ConstantConfig
from tfquant.graph.graph import Graph
from tfquant.layers.parts import Constant
from tfquant.registry.keras_layers import NORMS

# Integers of a residual stream, and of what norms make of it.
BITS = 16


def keep_residuals(graph: Graph) -> None:
    """Keeps sums that only norms read, directly or through further such sums, from 8 bits.

    The norm reads the sum as it is. The residual stream of a transformer, with its few huge
    channels, is then never rounded to few integers: only what matrices multiply is.

    Args:
        graph: `Graph`; of its nodes configs are taken away, or replaced by those of wide sums.
    """
    found = {}
    for node in reversed(graph.nodes):
        outputs = tree.flatten(node.outputs)
        readers = [reader for x in outputs for reader in graph.consumers(x)]
        if (
            type(node.layer) is layers.Add
            and node.config is not None
            and not node.own
            and readers
            and not any(graph.is_output(x) for x in outputs)
            and all(_is_norm(reader) or reader in found for reader in readers)
        ):
            norms = (pair for reader in readers for pair in found.get(reader, reader.norms))
            found[node] = tuple(dict.fromkeys(norms))
    for node, norms in found.items():
        wide = dataclasses.replace(node.scheme, activation_bits=BITS)
        node.norms, node.config = norms, SumConfig(wide.activations) if norms else None
        for constant in filter(_is_constant, map(graph.producer, node.inputs) if norms else ()):
            constant.norms, constant.config = norms, ConstantConfig(wide.activations)


def _is_constant(node):
    return node is not None and type(node.layer) is Constant and node.config is not None


def _is_norm(node):
    return bool(node.norms) or (type(node.layer) in NORMS and node.config is None)
