"""Keras's layers: one row each."""

import dataclasses

from keras import activations, layers

from tfquant.layers.parts import Remask, Unmask
from tfquant.numerics import PerAxis, QuantSpec
from tfquant.registry.elementwise import (
    AdaptiveAverageConfig,
    AverageConfig,
    HardSwishConfig,
    LeakyReluConfig,
    MeanConfig,
    OutputConfig,
    PReluConfig,
    ProductConfig,
    ResizeConfig,
    SameGridConfig,
    SumConfig,
    SwishConfig,
    TableConfig,
    UnitNormConfig,
)
from tfquant.registry.linear import LinearConfig, ReversibleEmbeddingConfig
from tfquant.registry.weights import WeightsConfig

# Layers with a kernel: name of the kernel, axes of its output channels, narrowest weights that
# LiteRT computes with in integers, and the width from which on down it does so in fixed point.
LINEAR = {
    layers.Dense: ("kernel", -1, 2, 0),
    layers.Conv1D: ("kernel", -1, 2, 4),
    layers.Conv2D: ("kernel", -1, 2, 4),
    layers.DepthwiseConv1D: ("kernel", (-2, -1), 8, 0),
    layers.DepthwiseConv2D: ("kernel", (-2, -1), 8, 0),
    layers.Conv1DTranspose: ("kernel", -2, 8, 0),
    layers.Conv2DTranspose: ("kernel", -2, 8, 0),
}

# Layers whose weights may have a scale for each group of inputs: those with packed kernels; where
# activations are quantized at run time, that of LiteRT's FULLY_CONNECTED alone.
GROUPED = (layers.Dense, layers.Conv1D, layers.Conv2D)
GROUPED_DYNAMIC = (layers.Dense,)

# Layers whose output lies on the grid of their inputs.
SAME_GRID = (
    layers.ActivityRegularization,
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
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
ADAPTIVE_AVERAGE = (layers.AdaptiveAveragePooling1D, layers.AdaptiveAveragePooling2D)
MEAN = (
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
)

# Ways to resize that have an integer kernel.
INTERPOLATIONS = ("nearest", "bilinear")

# Layers that stay float whatever the scheme. Of a norm's parts the squares of outliers decide the
# range: in the TFLite converter's own 8-bit file of a MiniLM encoder they reach 50,809, in steps of
# 199, where nine in ten are below 1.2.
FLOAT = (layers.LayerNormalization, layers.RMSNormalization)

# Functions with an integer kernel in LiteRT. LOGISTIC, SOFTMAX and TANH have the output grid that
# the TFLite 8-bit specification gives them, from the lowest to the highest value.
FIXED_RANGE = {
    activations.sigmoid: (0, 1),
    activations.softmax: (0, 1),
    activations.tanh: (-1, 1),
}
# The same, without a kernel for 16 bits.
FIXED_RANGE_8_BITS = {activations.log_softmax: (-16, 0)}
SWISH = (activations.silu,)
ACTIVATIONS = (
    activations.elu,
    activations.gelu,
    activations.relu,
    activations.relu6,
)

INT8 = QuantSpec(8)

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


def activation_config(function, spec):
    """Returns the config of the activation `function`, or `None` if no kernel computes it."""
    if function in FIXED_RANGE:
        wide = dataclasses.replace(spec, num_bits=spec.stored_bits)
        return OutputConfig(wide, fixed=_fixed_grid(wide, *FIXED_RANGE[function]))
    if function in FIXED_RANGE_8_BITS and spec.stored_bits == 8:
        return OutputConfig(INT8, fixed=_fixed_grid(INT8, *FIXED_RANGE_8_BITS[function]))
    if function in SWISH:
        return SwishConfig(spec)
    if function in (activations.hard_swish, activations.elu) and spec.stored_bits > 8:
        return None  # LiteRT has kernels of 8 bits for them only.
    if function is activations.hard_swish:
        return HardSwishConfig(spec)
    if function is activations.leaky_relu:
        return LeakyReluConfig(spec)
    if function is activations.linear:
        return SameGridConfig()
    return OutputConfig(spec) if function in ACTIVATIONS else None


def register_all(registry) -> None:
    """Fills `registry` with the tables of this file."""
    for layer_type, (kernel, axis, minimum_bits, fixed_point_bits) in LINEAR.items():
        registry.register(
            layer_type,
            lambda layer, scheme, row=(kernel, axis, minimum_bits, fixed_point_bits): _linear(
                layer, scheme, row
            ),
        )
    registry.register(layers.Embedding, _embedding)
    registry.register(layers.ReversibleEmbedding, _reversible_embedding)
    rows = {
        **dict.fromkeys(SAME_GRID, lambda layer, spec: SameGridConfig()),
        **dict.fromkeys(AVERAGE, lambda layer, spec: AverageConfig()),
        **dict.fromkeys(ADAPTIVE_AVERAGE, lambda layer, spec: AdaptiveAverageConfig()),
        **dict.fromkeys(MEAN, lambda layer, spec: MeanConfig(spec)),
        layers.Add: lambda layer, spec: SumConfig(spec),
        layers.Subtract: lambda layer, spec: SumConfig(spec, sign=-1),
        layers.Multiply: lambda layer, spec: ProductConfig(spec),
        layers.Activation: lambda layer, spec: activation_config(layer.activation, spec),
        layers.ReLU: lambda layer, spec: OutputConfig(spec),
        layers.LeakyReLU: lambda layer, spec: LeakyReluConfig(spec),
        layers.ELU: lambda layer, spec: (
            activation_config(activations.elu, spec) if layer.alpha == 1 else None
        ),
        layers.Softmax: lambda layer, spec: activation_config(activations.softmax, spec),
        layers.UnitNormalization: _unit_normalization,
        layers.PReLU: lambda layer, spec: PReluConfig(spec) if spec.num_bits == 8 else None,
        layers.CenterCrop: lambda layer, spec: ResizeConfig(),
        layers.Resizing: lambda layer, spec: _resize(layer),
        layers.UpSampling2D: lambda layer, spec: _resize(layer),
    }
    for layer_type, make in rows.items():
        registry.register(
            layer_type,
            lambda layer, scheme, make=make: (
                make(layer, scheme.activations) if scheme.static else None
            ),
        )


def _linear(layer, scheme, row):
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    kernel, axis, minimum_bits, fixed_point_bits = row
    grouped = type(layer) in (GROUPED_DYNAMIC if scheme.dynamic else GROUPED)
    if getattr(layer, "groups", 1) > 1:
        minimum_bits = 8  # As of depthwise ones: LiteRT has a slow reference kernel for fewer.
        grouped = False
    return LinearConfig.for_scheme(scheme, kernel, axis, minimum_bits, fixed_point_bits, grouped)


def _embedding(layer, scheme):
    if not scheme.static:
        return WeightsConfig.for_scheme(scheme)
    # Quantizing what a lookup returns is quantizing the table.
    return TableConfig(scheme.activations)


def _reversible_embedding(layer, scheme):
    if not scheme.static:
        return WeightsConfig.for_scheme(scheme)
    if layer.logit_soft_cap is not None:
        return None
    return ReversibleEmbeddingConfig(scheme.weights(PerAxis(0), 8), scheme.activations)


def _unit_normalization(layer, spec):
    if layer.axis not in (-1, [-1]) or spec.stored_bits != 8:
        return None
    return UnitNormConfig(INT8, fixed=_fixed_grid(INT8, -1, 1))


def _resize(layer):
    return ResizeConfig() if layer.interpolation in INTERPOLATIONS else None


def _fixed_grid(spec, low, high):
    """Returns the scale and zero point that spread `low` to `high` over all integers of `spec`."""
    if spec.symmetric:
        return 2.0 ** -(spec.num_bits - 1), 0
    scale = (high - low) / 2.0**spec.num_bits
    return scale, min(int(spec.qmin - low / scale), spec.qmax)
