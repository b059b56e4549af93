"""Keras's layers: one row each."""

import dataclasses

from keras import activations, layers

from tfquant import devices
from tfquant.configs.elementwise import (
    AdaptiveAverageConfig,
    AverageConfig,
    LeakyReluConfig,
    OutputConfig,
    PReluConfig,
    ProductConfig,
    ReduceConfig,
    ResizeConfig,
    SameGridConfig,
    SumConfig,
    SwishConfig,
    TableConfig,
    UnitNormConfig,
    VectorConfig,
)
from tfquant.configs.linear import GROUP_AXIS, LinearConfig, ReversibleEmbeddingConfig
from tfquant.configs.weights import WeightsConfig
from tfquant.devices import fixed_grid
from tfquant.layers import known
from tfquant.layers.parts import Remask, Unmask
from tfquant.numerics import PerAxis, PerGroup

# Layers with a kernel: its name, the axes of its output channels, the device's operator.
LINEAR = {
    layers.Dense: ("kernel", -1, "FULLY_CONNECTED"),
    layers.Conv1D: ("kernel", -1, "CONV_2D"),
    layers.Conv2D: ("kernel", -1, "CONV_2D"),
    layers.DepthwiseConv1D: ("kernel", (-2, -1), "DEPTHWISE_CONV_2D"),
    layers.DepthwiseConv2D: ("kernel", (-2, -1), "DEPTHWISE_CONV_2D"),
    layers.Conv1DTranspose: ("kernel", -2, "TRANSPOSE_CONV"),
    layers.Conv2DTranspose: ("kernel", -2, "TRANSPOSE_CONV"),
}

# Layers whose weights may have a scale for each group of inputs: those with packed kernels. Where
# activations are quantized at run time, the device says which.
GROUPED = (layers.Dense, layers.Conv1D, layers.Conv2D)

# Narrower integers have no DEQUANTIZE with a scale for each channel.
DEQUANTIZED_BITS = 8

# Layers whose output lies on the grid of their inputs.
SAME_GRID = (
    layers.ActivityRegularization,
    known.AdaptiveMaxPooling1D,
    known.AdaptiveMaxPooling2D,
    layers.AlphaDropout,
    layers.Concatenate,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.Dropout,
    layers.Flatten,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.Identity,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.Maximum,
    layers.Minimum,
    layers.Permute,
    layers.RepeatVector,
    layers.Reshape,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.UpSampling1D,
    layers.UpSampling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
    Remask,
    Unmask,
)

AVERAGE = (layers.AveragePooling1D, layers.AveragePooling2D)
ADAPTIVE_AVERAGE = (known.AdaptiveAveragePooling1D, known.AdaptiveAveragePooling2D)
MEAN = (
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
)

# Ways to resize that have an integer kernel.
INTERPOLATIONS = ("nearest", "bilinear")

# Layers that are float, or are taken apart into parts of 16 bits; see `tfquant.unfold.norms`. Of
# their squares outliers decide the range: in the TFLite converter's own 8-bit file of a MiniLM
# encoder they reach 50,809, in steps of 199, where nine in ten are below 1.2.
NORMS = (layers.GroupNormalization, layers.LayerNormalization, known.RMSNormalization)

# Functions that one operator of the device computes.
FUNCTIONS = {
    activations.elu: "ELU",
    activations.gelu: "GELU",
    activations.hard_swish: "HARD_SWISH",
    activations.log_softmax: "LOG_SOFTMAX",
    activations.relu: "RELU",
    activations.relu6: "RELU6",
    activations.sigmoid: "LOGISTIC",
    activations.softmax: "SOFTMAX",
    activations.tanh: "TANH",
}

# Those of them that look at whole vectors.
VECTOR_FUNCTIONS = (activations.log_softmax, activations.softmax)

# Clamps that kernels apply themselves.
CLAMPS = {activations.relu: (0.0, None), activations.relu6: (0.0, 6.0)}


def clamp_of(layer):
    """Returns the `(low, high)` that `layer` clips to, or `None` if it is no such activation."""
    if type(layer) is layers.Activation:
        return CLAMPS.get(layer.activation)
    if type(layer) is layers.ReLU and not layer.negative_slope and not layer.threshold:
        if layer.max_value is None:
            return (0.0, None)
        return (0.0, 6.0) if layer.max_value == 6 else None
    return None


def activation_config(function, scheme):
    """Returns the config of the activation `function`, or `None` if no kernel computes it."""
    if function is activations.silu:
        return SwishConfig(scheme.activations)
    if function is activations.leaky_relu:
        return LeakyReluConfig(scheme.activations)
    if function is activations.linear:
        return SameGridConfig()
    kind = VectorConfig if function in VECTOR_FUNCTIONS else OutputConfig
    return operator_config(FUNCTIONS.get(function), scheme, kind)


def operator_config(operator, scheme, kind=OutputConfig, **settings):
    """Returns the config of a layer that one operator of the device computes.

    Args:
        operator: Name of the operator.
        scheme: `Scheme`.
        kind: `OutputConfig` or a subclass of it.
        **settings: What else the constructor takes.

    Returns:
        `None` where the device has no kernel of the width.
    """
    spec, device = scheme.activations, devices.get(scheme.device)
    if operator is None or device.why_not(operator, spec.stored_bits):
        return None
    grid = device.operators[operator].grid
    if not isinstance(grid, tuple):
        return kind(spec, operator=operator, **settings)
    wide = dataclasses.replace(spec, num_bits=spec.stored_bits)
    fixed = fixed_grid(grid, spec.stored_bits)
    return kind(wide, operator=operator, fixed=fixed, **settings)


def linear_config(scheme, kernel, channel_axis, operator, minimum_bits=0, grouped=False):
    """Returns the config of a layer that multiplies by a kernel.

    Args:
        scheme: `Scheme`.
        kernel: Name of the kernel.
        channel_axis: Axis or axes of the kernel that number the output channels.
        operator: Name of the device's operator.
        minimum_bits: Narrowest weights that the device computes with.
        grouped: Whether the layer takes the groups of the scheme.
    """
    granularity = PerAxis(channel_axis)
    if grouped and scheme.group_size:
        granularity = PerGroup(GROUP_AXIS, scheme.group_size)
    return LinearConfig(
        kernel,
        channel_axis,
        weights=scheme.weights(granularity, minimum_bits) or "float16",
        activations=scheme.activations if scheme.static else None,
        dynamic=scheme.dynamic,
        operator=operator,
    )


def weights_config(scheme):
    """Returns the config of a layer of any type: weights in integers, arithmetic in float.

    Returns:
        `None` where the device does not have that.
    """
    if not devices.get(scheme.device).dequantizes:
        return None
    return WeightsConfig(scheme.weights(PerAxis(-1), DEQUANTIZED_BITS) or "float16")


def register_all(registry) -> None:
    """Fills `registry` with the tables of this file."""
    for layer_type, row in LINEAR.items():
        registry.register(layer_type, lambda layer, scheme, row=row: _linear(layer, scheme, *row))
    registry.register(layers.Embedding, _embedding)
    registry.register(known.ReversibleEmbedding, _reversible_embedding)
    rows = {
        **dict.fromkeys(SAME_GRID, lambda layer, scheme: SameGridConfig()),
        **dict.fromkeys(AVERAGE, lambda layer, scheme: AverageConfig()),
        **dict.fromkeys(ADAPTIVE_AVERAGE, lambda layer, scheme: AdaptiveAverageConfig()),
        **dict.fromkeys(
            MEAN, lambda layer, scheme: ReduceConfig(scheme.activations, operator="MEAN")
        ),
        layers.Add: lambda layer, scheme: SumConfig(scheme.activations),
        layers.Subtract: lambda layer, scheme: SumConfig(scheme.activations, sign=-1),
        layers.Multiply: lambda layer, scheme: ProductConfig(scheme.activations),
        layers.Activation: lambda layer, scheme: activation_config(layer.activation, scheme),
        layers.ReLU: _relu,
        layers.LeakyReLU: lambda layer, scheme: LeakyReluConfig(scheme.activations),
        layers.ELU: lambda layer, scheme: (
            operator_config("ELU", scheme) if layer.alpha == 1 else None
        ),
        layers.Softmax: lambda layer, scheme: activation_config(activations.softmax, scheme),
        layers.UnitNormalization: _unit_normalization,
        layers.PReLU: lambda layer, scheme: operator_config("PRELU", scheme, PReluConfig),
        layers.CenterCrop: lambda layer, scheme: ResizeConfig(),
        layers.Resizing: _resize,
        layers.UpSampling2D: _resize,
    }
    for layer_type, make in rows.items():
        registry.register(
            layer_type,
            lambda layer, scheme, make=make: make(layer, scheme) if scheme.static else None,
        )


def _linear(layer, scheme, kernel, axis, operator):
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    row = devices.get(scheme.device).operators[operator]
    groups = getattr(layer, "groups", 1) > 1
    # As of depthwise ones: LiteRT has a slow reference kernel for fewer bits.
    minimum_bits = 8 if groups else row.weight_bits
    grouped = type(layer) in GROUPED and not groups and (row.grouped or not scheme.dynamic)
    return linear_config(scheme, kernel, axis, operator, minimum_bits, grouped)


def _relu(layer, scheme):
    known = not layer.negative_slope and not layer.threshold and layer.max_value in (None, 6)
    operator = {None: "RELU", 6: "RELU6"}[layer.max_value] if known else None
    return OutputConfig(scheme.activations, operator=operator)


def _embedding(layer, scheme):
    if not scheme.static:
        return weights_config(scheme)
    # Quantizing what a lookup returns is quantizing the table.
    return TableConfig(scheme.activations)


def _reversible_embedding(layer, scheme):
    if not scheme.static:
        return weights_config(scheme)
    if layer.logit_soft_cap is not None:
        return None
    return ReversibleEmbeddingConfig(scheme.weights(PerAxis(0), 8), scheme.activations)


def _unit_normalization(layer, scheme):
    if layer.axis not in (-1, [-1]):
        return None
    return operator_config("L2_NORMALIZATION", scheme, UnitNormConfig)


def _resize(layer, scheme):
    bilinear = layer.interpolation == "bilinear"
    bits, device = scheme.activations.stored_bits, devices.get(scheme.device)
    if bilinear and device.why_not("RESIZE_BILINEAR", bits):
        return None
    # Smoothed in front of it, an image is no longer a mean of four neighbours.
    smoothed = layer.interpolation != "nearest" and getattr(layer, "antialias", False)
    return ResizeConfig() if layer.interpolation in INTERPOLATIONS and not smoothed else None
