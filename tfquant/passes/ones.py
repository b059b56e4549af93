"""Batch norms that no kernel took, as kernels of ones."""

import dataclasses

from keras import layers

from tfquant.configs.elementwise import SameGridConfig
from tfquant.configs.linear import LinearConfig
from tfquant.graph.graph import Graph, Node
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.unfold.decompose import standalone_batch_norm


def make_ones(graph: Graph) -> None:
    """Makes a depthwise convolution of ones of each batch norm that is to be a kernel of its own.

        bn(x) = bn(ones * x)

    The device has no batch norm; a convolution has a scale for each channel and a 32-bit bias.

    Args:
        graph: `Graph`, changed in place.
    """
    made, nodes = {}, []
    for node in graph.nodes:
        lone = isinstance(node.layer, layers.BatchNormalization)
        if lone and not node.own and isinstance(node.config, LinearConfig):
            nodes += _in_its_place(node, made)
        else:
            nodes.append(node)
    graph.nodes[:] = nodes
    graph.forget_order()


def _in_its_place(node, made) -> list[Node]:
    """Returns the calls that stand for that of a batch norm."""
    (x,), shape = node.inputs, tuple(node.inputs[0].shape)
    before, convolution, after = standalone_batch_norm(node.layer, shape)
    if node.layer not in made:
        norm = copy_layer(node.clone, axis=-1)
        norm.build((None, None, None, shape[-1]))
        transfer_weights(node.layer, norm)
        made[node.layer] = convolution, Node(norm, norm, (), {}, None)
    convolution, norm = made[node.layer]
    before, after = made.setdefault((node.layer, shape), (before, after))
    # Ones train no step of theirs.
    scheme = dataclasses.replace(node.scheme, weight_quantizer="abs_max")
    kernel = dataclasses.replace(
        node,
        layer=convolution,
        clone=convolution,
        args=(x,),
        kwargs={},
        scheme=scheme,
        batch_norm=norm,
        alias=node.layer.name,
    )
    if before is None:
        return [kernel]
    mover = dataclasses.replace(
        node, layer=before, clone=before, kwargs={}, config=SameGridConfig(), clamp=None
    )
    mover.outputs = before(x)
    kernel.args, kernel.outputs = (mover.outputs,), convolution(mover.outputs)
    last = dataclasses.replace(mover, layer=after, clone=after, args=(kernel.outputs,))
    last.outputs = node.outputs
    return [mover, kernel, last]
