"""Layers of other layouts, brought to the one that the device has kernels for.

Its kernels take two spatial axes and the channels last. A third spatial axis is pooled, and joined,
on its own: `max` and the mean over a box are those over its faces and then along its edge.
"""

from keras import layers

from tfquant.layers import known
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.pieces.parts import Parts
from tfquant.registry.keras_layers import LINEAR
from tfquant.wrappers import QuantizeAnnotate

POOLING_3D = {
    known.AdaptiveAveragePooling3D: known.AdaptiveAveragePooling2D,
    known.AdaptiveMaxPooling3D: known.AdaptiveMaxPooling2D,
    layers.AveragePooling3D: layers.AveragePooling2D,
    layers.MaxPooling3D: layers.MaxPooling2D,
}


# Layers that may have their channels first.
CHANNELS_FIRST = (
    *POOLING_3D,
    *LINEAR,
    known.AdaptiveAveragePooling1D,
    known.AdaptiveAveragePooling2D,
    known.AdaptiveMaxPooling1D,
    known.AdaptiveMaxPooling2D,
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
    """Computes channels last, between two permutations; see `tfquant.unfold.unfold`."""
    return _between_permutes(layer, scheme, data_format="channels_last")


def unfold_batch_norm(layer, scheme):
    """Normalizes the channels of axis 1 as the last; see `tfquant.unfold.unfold`."""
    if layer.axis != 1 or not scheme.static:
        return None
    return _between_permutes(layer, scheme, axis=-1)


def _between_permutes(layer, scheme, **settings):
    """Computes a layer of other settings, whose channels are the last."""

    def call(x, training=None, mask=None):
        del training
        rank, parts = len(x.shape), Parts(layer.name, scheme)
        if rank < 3 or mask is not None:
            return None
        copy = copy_layer(layer, **settings)
        to_last = parts.make("channels_last", layers.Permute, (*range(2, rank), 1))
        y = QuantizeAnnotate(copy)(to_last(x))
        transfer_weights(layer, copy)
        if len(y.shape) != rank:
            return y
        to_first = (rank - 1, *range(1, rank - 1))
        return parts.make("channels_first", layers.Permute, to_first)(y)

    return call


def unfold_pooling_3d(layer, scheme):
    """Pools height and width, then depth; see `tfquant.unfold.unfold`.

    (d, h, w, c) -> (h, w, d * c) -> (h', w', d * c) -> (h' * w', d, c) -> (h' * w', d', c)
    """
    pool = POOLING_3D[type(layer)]

    def stage(parts, sizes, height, width, name):
        """Returns the pooling of two axes; `None` leaves an axis as it is."""
        if hasattr(layer, "output_size"):
            sizes = [
                n if size is None else size for size, n in zip(sizes, (height, width), strict=True)
            ]
            return parts.make(name, pool, sizes)
        strides = [1 if i is None else layer.strides[i] for i in sizes]
        window = [1 if i is None else layer.pool_size[i] for i in sizes]
        return parts.make(name, pool, window, strides=strides, padding=layer.padding)

    def call(x):
        _, depth, height, width, channels = x.shape
        if None in (depth, height, width, channels):
            return None
        out = getattr(layer, "output_size", None)
        picked = (lambda i: out[i]) if out is not None else (lambda i: i)
        parts = Parts(layer.name, scheme)
        y = parts.make("depth_last", layers.Permute, (2, 3, 1, 4))(x)
        y = parts.make("joined", layers.Reshape, (height, width, depth * channels))(y)
        y = stage(parts, (picked(1), picked(2)), height, width, "faces")(y)
        height, width = y.shape[1:3]
        y = parts.make("columns", layers.Reshape, (height * width, depth, channels))(y)
        y = stage(parts, (None, picked(0)), height * width, depth, "edges")(y)
        depth = y.shape[2]
        y = parts.make("parted", layers.Reshape, (height, width, depth, channels))(y)
        return parts.make("depth_first", layers.Permute, (3, 1, 2, 4))(y)

    return call
