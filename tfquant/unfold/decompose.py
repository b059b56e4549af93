"""Layers that the device computes as several kernels, taken apart before they are quantized."""

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
