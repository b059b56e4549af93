"""Batch norms that no kernel took, as kernels of ones."""

import dataclasses

import numpy as np
from keras import layers

from tfquant.configs.elementwise import SameGridConfig
from tfquant.configs.linear import LinearConfig
from tfquant.graph.graph import Graph, Node
from tfquant.layers.copy import copy_layer, transfer_weights


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
    before, convolution, after = _of_ones(node.layer, shape)
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
    after.build(kernel.outputs.shape)  # Its output is there already: nobody calls it.
    last = dataclasses.replace(mover, layer=after, clone=after, args=(kernel.outputs,))
    last.outputs = node.outputs
    return [mover, kernel, last]


def _of_ones(layer, shape):
    """Returns layers that compute a batch norm of no linear layer as a convolution of ones.

    The device has no batch norm. As a depthwise convolution of size one it has a scale for each
    channel and a 32-bit bias; as a product and a sum of 8-bit constants it would lose most of its
    precision.

    Args:
        layer: `keras.layers.BatchNormalization` over the last axis.
        shape: Shape of its input, of rank 2 to 5.

    Returns:
        `(before, convolution, after)`: layers to call before and behind the convolution (or
        `None`), and the convolution, whose kernel of ones is built and not trainable.
    """
    channels = int(layer.moving_mean.shape[0])
    convolution = layers.DepthwiseConv2D(
        1, use_bias=False, trainable=False, name=f"{layer.name}_ones"
    )
    convolution.build((None, None, None, channels))
    convolution.set_weights([np.ones((1, 1, channels, 1), np.float32)])
    if len(shape) == 4:
        return None, convolution, None
    before = layers.Reshape((-1, 1, channels), name=f"{layer.name}_expand")
    shape = (-1, channels) if len(shape) == 3 else [-1 if n is None else n for n in shape[1:]]
    return before, convolution, layers.Reshape(shape, name=f"{layer.name}_squeeze")
