"""A batch norm in front of a dense layer, folded into it."""

import numpy as np
from keras import layers

from tfquant.graph.graph import Graph, Node
from tfquant.layers.copy import copy_layer
from tfquant.registry.keras_layers import LINEAR


def fold_forward(graph: Graph) -> None:
    """Folds batch norms of vectors into the dense layers that read them.

    With `g = gamma / sqrt(variance + epsilon)`:

        dense(bn(x)) = x @ (g[:, None] * kernel) + ((beta - mean * g) @ kernel + bias)

    The TFLite converter does so whether asked or not, and where it does there is no tensor behind
    the batch norm whose range could be set. Not where a linear layer before it takes it, nor where
    either is called twice.

    Args:
        graph: `Graph`, changed in place.
    """
    for norm in list(graph.nodes):
        if not isinstance(norm.layer, layers.BatchNormalization) or len(norm.inputs[0].shape) != 2:
            continue
        readers = graph.consumers(norm.outputs)
        if (
            len(readers) == 1
            and type(readers[0].layer) is layers.Dense
            and not graph.is_output(norm.outputs)
            and _may_fold(graph, norm, readers[0])
        ):
            _fold(norm, readers[0])
            graph.nodes.remove(norm)
    graph.forget_order()


def _may_fold(graph, norm: Node, dense: Node):
    before = graph.producer(norm.inputs[0])
    taken = (
        before is not None
        and type(before.layer) in LINEAR
        and before.marked
        and len(graph.consumers(norm.inputs[0])) == 1
    )
    return (
        not taken
        and all(len(graph.calls(node.layer)) == 1 for node in (norm, dense))
        and norm.marked
        and not norm.own
        and dense.config is not None
        and not (dense.own and dense.part)
        and norm.layer.axis in (-1, 1)
    )


def _fold(norm: Node, dense: Node):
    layer = norm.layer
    gain = 1.0 / np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
    if layer.scale:
        gain = gain * layer.gamma.numpy()
    shift = -layer.moving_mean.numpy() * gain
    if layer.center:
        shift = shift + layer.beta.numpy()
    kernel = dense.layer.kernel.numpy().astype(np.float64)
    bias = dense.layer.bias.numpy() if dense.layer.use_bias else 0.0
    folded = copy_layer(dense.layer, use_bias=True)
    folded.build(norm.inputs[0].shape)
    folded.set_weights([gain[:, None] * kernel, shift @ kernel + bias])
    dense.layer = dense.clone = folded
    dense.args, dense.kwargs = norm.args, {}
