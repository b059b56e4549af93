"""Layers that the device computes as several kernels, taken apart before they are quantized."""

import numpy as np
from keras import activations, layers

from tfquant.layers.copy import copy_layer
from tfquant.registry.keras_layers import LINEAR


def decompose(layer):
    """Takes `layer` apart.

    A dense or convolution layer with an activation becomes the layer without it and an
    `Activation`: the device rounds between them, or clamps. A separable convolution becomes a
    depthwise and a pointwise one.

    Args:
        layer: Built Keras layer.

    Returns:
        List of pairs of a new layer, not yet built, and the weights for it once it is. Called one
        after the other they compute what `layer` does. `None` if the layer is one kernel already.
    """
    if type(layer) in LINEAR and layer.activation is not activations.linear:
        bare = copy_layer(layer, activation=None)
        return [(bare, layer.get_weights()), (_activation(layer), [])]
    if type(layer) in (layers.SeparableConv1D, layers.SeparableConv2D):
        return _separable(layer)
    return None


def standalone_batch_norm(layer, shape):
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


def _activation(layer):
    function = layer.activation
    name = getattr(function, "__name__", type(function).__name__)
    return layers.Activation(function, name=f"{layer.name}_{name}")


def _separable(layer):
    two_dimensional = type(layer) is layers.SeparableConv2D
    depthwise_type, pointwise_type = (
        (layers.DepthwiseConv2D, layers.Conv2D)
        if two_dimensional
        else (layers.DepthwiseConv1D, layers.Conv1D)
    )
    depthwise = depthwise_type(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        name=f"{layer.name}_depthwise",
    )
    pointwise = pointwise_type(
        layer.filters,
        1,
        data_format=layer.data_format,
        use_bias=layer.use_bias,
        name=f"{layer.name}_pointwise",
    )
    weights = layer.get_weights()
    parts = [(depthwise, weights[:1]), (pointwise, weights[1:])]
    if layer.activation is not activations.linear:
        parts.append((_activation(layer), []))
    return parts
