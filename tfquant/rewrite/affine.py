"""Constant factors and shifts of channels."""

import keras
import numpy as np

from tfquant.registry.parts import ChannelAffine
from tfquant.rewrite.annotate import QuantizeAnnotate
from tfquant.rewrite.graph import Graph
from tfquant.wrappers.config import copy_layer


def channel_affine(x, factor, shift, trainable, name):
    """Returns `x * factor + shift`, or `None` if the channels of `x` are not known.

    Args:
        x: KerasTensor `(batch, ..., channels)`.
        factor: Number, or one for each channel.
        shift: Likewise.
        trainable: Whether both train.
        name: Name of the layer.
    """
    channels = x.shape[-1]
    if channels is None or not 2 <= len(x.shape) <= 4 or "float" not in x.dtype:
        return None
    layer = ChannelAffine(trainable=trainable, name=name)
    layer.build(x.shape)
    factor, shift = (np.broadcast_to(v, channels).astype(np.float32) for v in (factor, shift))
    layer.set_weights([factor, shift, np.zeros(channels), np.ones(channels)])
    return QuantizeAnnotate(layer)(x)


def constants(x) -> np.ndarray:
    """Returns a constant or the value of a variable, as float64 without axes of length 1."""
    return np.asarray(keras.ops.convert_to_numpy(x), np.float64).reshape(-1)


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
