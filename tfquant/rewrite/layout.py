"""Layers of other layouts, brought to the one that the device has kernels for.

Its kernels take two spatial axes and the channels last. A third spatial axis is pooled, and joined,
on its own: `max` and the mean over a box are those over its faces and then along its edge.
"""

import keras
from keras import activations, layers

from tfquant.registry.keras_layers import LINEAR
from tfquant.rewrite.annotate import QuantizeAnnotate
from tfquant.rewrite.graph import Graph, Node
from tfquant.wrappers.config import copy_layer, transfer_weights

POOLING_3D = {
    layers.AdaptiveAveragePooling3D: layers.AdaptiveAveragePooling2D,
    layers.AdaptiveMaxPooling3D: layers.AdaptiveMaxPooling2D,
    layers.AveragePooling3D: layers.AveragePooling2D,
    layers.MaxPooling3D: layers.MaxPooling2D,
}


# Layers that may have their channels first.
CHANNELS_FIRST = (
    *POOLING_3D,
    *LINEAR,
    layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D,
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.Conv3D,
    layers.Conv3DTranspose,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)


def is_channels_first(layer) -> bool:
    """Whether `layer` is one of Keras's whose channels are the first axis behind the batch."""
    return type(layer) in CHANNELS_FIRST and getattr(layer, "data_format", None) == "channels_first"


def unfold_channels_first(layer, scheme):
    """Computes channels last, between two permutations; see `tfquant.rewrite.unfold`."""
    del scheme

    def call(x, training=None):
        del training
        rank = len(x.shape)
        first = QuantizeAnnotate(
            layers.Permute((*range(2, rank), 1), name=f"{layer.name}_channels_last")
        )
        copy = copy_layer(layer, data_format="channels_last")
        y = QuantizeAnnotate(copy)(first(x))
        transfer_weights(layer, copy)
        if len(y.shape) != rank:
            return y
        return QuantizeAnnotate(
            layers.Permute((rank - 1, *range(1, rank - 1)), name=f"{layer.name}_channels_first")
        )(y)

    return call


def unfold_batch_norm(layer, scheme):
    """Normalizes the channels of axis 1 as the last; see `tfquant.rewrite.unfold`."""
    if layer.axis != 1 or not scheme.static:
        return None

    def call(x, training=None, mask=None):
        del training
        rank = len(x.shape)
        if rank < 3 or mask is not None:
            return None
        to_last, to_first = (*range(2, rank), 1), (rank - 1, *range(1, rank - 1))
        permute = lambda axes, name: QuantizeAnnotate(  # noqa: E731
            layers.Permute(axes, name=f"{layer.name}_{name}")
        )
        copy = copy_layer(layer, axis=-1)
        y = QuantizeAnnotate(copy)(permute(to_last, "channels_last")(x))
        transfer_weights(layer, copy)
        return permute(to_first, "channels_first")(y)

    return call


def unfold_pooling_3d(layer, scheme):
    """Pools height and width, then depth; see `tfquant.rewrite.unfold`.

    (d, h, w, c) -> (h, w, d * c) -> (h', w', d * c) -> (h' * w', d, c) -> (h' * w', d', c)
    """
    del scheme
    pool = POOLING_3D[type(layer)]

    def mark(make, *args, name, **kwargs):
        return QuantizeAnnotate(make(*args, name=f"{layer.name}_{name}", **kwargs))

    def stage(sizes, height, width, name):
        """Returns the pooling of two axes; `None` leaves an axis as it is."""
        if hasattr(layer, "output_size"):
            sizes = [
                n if size is None else size for size, n in zip(sizes, (height, width), strict=True)
            ]
            return mark(pool, sizes, name=name)
        strides = [1 if i is None else layer.strides[i] for i in sizes]
        window = [1 if i is None else layer.pool_size[i] for i in sizes]
        return mark(pool, window, strides=strides, padding=layer.padding, name=name)

    def call(x):
        _, depth, height, width, channels = x.shape
        if None in (depth, height, width, channels):
            return None
        out = getattr(layer, "output_size", None)
        picked = (lambda i: out[i]) if out is not None else (lambda i: i)
        y = mark(layers.Permute, (2, 3, 1, 4), name="depth_last")(x)
        y = mark(layers.Reshape, (height, width, depth * channels), name="joined")(y)
        y = stage((picked(1), picked(2)), height, width, "faces")(y)
        height, width = y.shape[1:3]
        y = mark(layers.Reshape, (height * width, depth, channels), name="columns")(y)
        y = stage((None, picked(0)), height * width, depth, "edges")(y)
        depth = y.shape[2]
        y = mark(layers.Reshape, (height, width, depth, channels), name="parted")(y)
        return mark(layers.Permute, (3, 1, 2, 4), name="depth_first")(y)

    return call


def delay_permutes(graph: Graph) -> list[tuple[Node, Node]]:
    """Moves permutations behind layers that compute each element by itself.

        relu(permute(x)) = permute(relu(x))

    Args:
        graph: `Graph`, changed in place.

    Returns:
        Pairs of a new call of a permutation and the call that it repeats.
    """
    made = []
    for node in list(graph.nodes):
        before = [graph.producer(x) for x in node.inputs]
        if (
            not _is_elementwise(node.layer)
            or any(b is None or type(b.layer) is not layers.Permute for b in before)
            or len({b.layer.dims for b in before}) != 1
            or graph.is_output(node.outputs)
        ):
            continue
        moved = Node(before[0].layer, before[0].clone, (), {}, node.outputs)
        inside = {id(b.outputs): b.inputs[0] for b in before}
        node.args, node.kwargs = _replace(inside, (node.args, node.kwargs))
        node.outputs = node.clone(*node.args, **node.kwargs)
        moved.args = (node.outputs,)
        graph.nodes.insert(graph.nodes.index(node) + 1, moved)
        graph.forget_order()
        made.append((moved, before[0]))
    return made


def _is_elementwise(layer):
    if type(layer) is layers.Activation:
        return layer.activation is not activations.softmax
    return type(layer) in (
        layers.Add,
        layers.ELU,
        layers.LeakyReLU,
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
            node.args, node.kwargs = _replace(replaced, (node.args, node.kwargs))
        before = graph.producer(node.inputs[0]) if type(node.layer) is layers.Permute else None
        if before is None or type(before.layer) is not layers.Permute:
            continue
        inner, outer = before.layer.dims, node.layer.dims
        if [inner[axis - 1] for axis in outer] == sorted(inner) and not graph.is_output(
            node.outputs
        ):
            replaced[id(node.outputs)] = before.inputs[0]
    graph.forget_order()
    _remove_unread(graph)


def _replace(replaced, structure):
    return keras.tree.map_structure(lambda x: replaced.get(id(x), x), structure)


def _remove_unread(graph):
    """Removes permutations that nobody reads."""
    for node in reversed(list(graph.nodes)):
        unread = not graph.is_output(node.outputs) and not graph.consumers(node.outputs)
        if type(node.layer) is layers.Permute and unread:
            graph.nodes.remove(node)
            graph.forget_order()
