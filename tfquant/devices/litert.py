"""`litert`: LiteRT's default kernels on x86-64, XNNPACK's and where it has none LiteRT's own.

Source: the TFLite 8-bit quantization specification
(https://ai.google.dev/edge/litert/models/quantization_spec), the kernels' sources, and for what a
kernel computes measurement: each row is compared with LiteRT by the tests.
"""

import math

import numpy as np
from keras import ops

from tfquant.devices.device import INPUTS, OWN, Device, Operator, Product
from tfquant.kernels import builtin, gemmlowp, tables, xnnpack
from tfquant.numerics.fixed_point import (
    requantize_fixed_point_64,
    requantize_half_away,
    requantize_one_rounding,
    round_half_away,
)

# Operators whose output is the values of their inputs, moved or picked.
_MOVES = (
    "BATCH_TO_SPACE_ND",
    "BROADCAST_TO",
    "CONCATENATION",
    "DEPTH_TO_SPACE",
    "EXPAND_DIMS",
    "GATHER",
    "GATHER_ND",
    "MAXIMUM",
    "MAX_POOL_2D",
    "MINIMUM",
    "MIRROR_PAD",
    "PACK",
    "PAD",
    "REDUCE_MAX",
    "REDUCE_MIN",
    "RESHAPE",
    "RESIZE_NEAREST_NEIGHBOR",
    "REVERSE_V2",
    "SELECT",
    "SELECT_V2",
    "SLICE",
    "SPACE_TO_BATCH_ND",
    "SPACE_TO_DEPTH",
    "SPLIT",
    "SPLIT_V",
    "SQUEEZE",
    "STRIDED_SLICE",
    "TILE",
    "TRANSPOSE",
    "UNPACK",
)

# XNNPACK takes sums whose steps are below 256 times the output's.
_BELOW_256 = float(np.nextafter(np.float32(256.0), np.float32(0.0)))

# Comparisons, whose output is no number. Kernels compare `round(256 * scale * (q - zero_point))` of
# both operands: right on one grid whose steps keep different integers apart. At 1 LiteRT aborts.
COMPARISONS = frozenset({"EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL"})
COMPARED_STEPS = (2.0**-8, 1.0)


def _table(name):
    return {8: tables.look_up(name), 16: tables.interpolate(name)}


def _clamped(*bounds):
    kernel = builtin.clamped(builtin.scaled, *bounds)
    return {8: kernel, 16: kernel}


def _taken_between(low, high, theirs, own):
    """Returns a kernel: XNNPACK's where it takes the ratios of steps, else LiteRT's own.

    Args:
        low: The smallest ratio of an input's step to the output's that XNNPACK takes, and of that
            times a slope.
        high: The largest.
        theirs: XNNPACK's kernel.
        own: LiteRT's.
    """

    def kernel(inputs, output, **settings):
        ratios = [x.params.scale / output.params.scale for x in inputs]
        ratios += [ratio * settings["slope"] for ratio in ratios if "slope" in settings]
        ratios = ops.stack([ops.cast(ratio, "float32") for ratio in ratios])
        return ops.cond(
            ops.logical_and(ops.min(ratios) >= low, ops.max(ratios) <= high),
            lambda: ops.cast(theirs(inputs, output, **settings), "float64"),
            lambda: ops.cast(own(inputs, output, **settings), "float64"),
        )

    return kernel


def _ratios_between(low, high):
    """Returns whether every input's step, divided by the output's, lies between two bounds."""
    return lambda scales, scale: all(low <= x / scale <= high for x in scales)


def _factor_below_256(scales, scale):
    """Whether what a product of integers is multiplied by is no more than kernels take."""
    return math.prod(scales) / scale <= _BELOW_256


def _matrix_product(inputs, output, sums):
    """Scales as XNNPACK where the second zero point is 0, else as LiteRT's own kernel."""
    theirs = xnnpack.matrix_product(inputs, output, sums)
    own = builtin.matrix_product(requantize_half_away)(inputs, output, sums)
    taken = inputs[1].params.zero_point == 0
    return ops.where(taken, ops.round(theirs), ops.cast(own, "float32"))


OPERATORS = {
    **{name: Operator(INPUTS) for name in _MOVES},
    **{name: Operator(None) for name in COMPARISONS},
    # Kernels that look at a tensor of any type and compute no real values.
    "ARG_MAX": Operator(None),
    "ARG_MIN": Operator(None),
    "RANK": Operator(None),
    "SHAPE": Operator(None),
    "CONV_2D": Operator(OWN, weight_bits=2),
    "DEPTHWISE_CONV_2D": Operator(OWN, weight_bits=8),
    "FULLY_CONNECTED": Operator(OWN, weight_bits=2, grouped=True),
    "TRANSPOSE_CONV": Operator(OWN, weight_bits=8),
    "ABS": Operator(OWN, {8: builtin.magnitude, 16: builtin.magnitude}),
    "ADD": Operator(
        OWN,
        {
            8: _taken_between(2.0**-10, _BELOW_256, xnnpack.add, builtin.add(20)),
            16: builtin.add(15, requantize_one_rounding),
        },
        modelled={8: _ratios_between(0.0, _BELOW_256)},
    ),
    "AVERAGE_POOL_2D": Operator(INPUTS, {8: builtin.average, 16: builtin.average}),
    "BATCH_MATMUL": Operator(
        OWN,
        {
            8: _matrix_product,
            16: builtin.matrix_product(requantize_fixed_point_64),
        },
    ),
    "ELU": Operator(OWN, {8: tables.look_up("ELU")}, num_bits=(8,)),
    "EXP": Operator(
        OWN, {8: tables.look_up("EXP", round_half_away), 16: tables.interpolate("EXP")}
    ),
    # The table is of the C library's `erfcf`, which rounds otherwise in each: glibc's before 2.41
    # and Android's in float32, glibc's since as the real number.
    "GELU": Operator(OWN, _table("GELU"), inexact={16: "table"}),
    "HARD_SWISH": Operator(OWN, {8: builtin.hard_swish}, num_bits=(8,)),
    "L2_NORMALIZATION": Operator((-1.0, 1.0), {8: builtin.unit_length}, num_bits=(8,)),
    "LEAKY_RELU": Operator(
        OWN,
        {
            8: _taken_between(2.0**-8, 2.0**7, xnnpack.leaky_relu, builtin.leaky_relu),
            16: builtin.leaky_relu,
        },
    ),
    "LOG": Operator(OWN, {8: tables.look_up("LOG", round_half_away)}, num_bits=(8,)),
    "LOGISTIC": Operator(
        (0.0, 1.0),
        {8: tables.look_up("LOGISTIC"), 16: tables.logistic_16},
        series={16: {-12: gemmlowp.logistic_16}},
    ),
    "LOG_SOFTMAX": Operator((-16.0, 0.0), {8: tables.log_softmax}, num_bits=(8,)),
    "MEAN": Operator(OWN, {8: xnnpack.mean, 16: builtin.mean}),
    "MUL": Operator(
        OWN, {8: xnnpack.product, 16: builtin.product}, modelled={8: _factor_below_256}
    ),
    "PRELU": Operator(OWN, {8: builtin.prelu}, num_bits=(8,)),
    "QUANTIZE": Operator(
        OWN,
        {
            8: _taken_between(2.0**-8, 2.0**7, xnnpack.to_step, builtin.to_step_halves_upward),
            16: builtin.to_step,
        },
        # What is left over by 16 rounds halves away from zero: how many depends on the batch.
        modelled={8: _ratios_between(2.0**-8, 2.0**7)},
    ),
    "REDUCE_PROD": Operator(OWN, {8: builtin.reduce_product_or_copy}, num_bits=(8,)),
    "RELU": Operator(OWN, _clamped(0.0)),
    "RELU6": Operator(OWN, _clamped(0.0, 6.0)),
    "RELU_N1_TO_1": Operator(OWN, {8: _clamped(-1.0, 1.0)[8]}, num_bits=(8,)),
    "RESIZE_BILINEAR": Operator(INPUTS, {8: xnnpack.resize_bilinear, 16: builtin.resize_bilinear}),
    "RSQRT": Operator(OWN, {8: builtin.inverse_root, 16: tables.inverse_root()}),
    # In 16 bits what lies below exp(-10) counts as exp(-10): of 256 values 1% of the sum.
    "SOFTMAX": Operator(
        (0.0, 1.0),
        {8: tables.softmax_float_table, 16: tables.softmax_16},
        longest={16: 256},
    ),
    "SUB": Operator(
        OWN,
        {
            8: _taken_between(2.0**-10, _BELOW_256, xnnpack.subtract, builtin.subtract(20)),
            16: builtin.subtract(15),
        },
        modelled={8: _ratios_between(0.0, _BELOW_256)},
    ),
    "SUM": Operator(OWN, {8: xnnpack.total, 16: builtin.total}),
    "TANH": Operator(
        (-1.0, 1.0),
        {8: tables.look_up("TANH"), 16: tables.tanh_16},
        series={16: {-12: gemmlowp.tanh_16(0), -11: gemmlowp.tanh_16(1)}},
    ),
}


def rounding(product: Product) -> str:
    """Returns how a kernel rounds: XNNPACK's in float32, LiteRT's own in fixed point.

    XNNPACK multiplies by 4-bit weights in FULLY_CONNECTED alone, by an even number of inputs.
    """
    if product.activation_bits > 8:
        if product.operator != "FULLY_CONNECTED":
            return "short_significand"
        return "float64" if product.bias else "two_roundings"
    if product.weight_bits > 4 or product.operator not in ("CONV_2D", "FULLY_CONNECTED"):
        return "float32"
    if product.operator == "FULLY_CONNECTED" and product.depth % 2 == 0:
        return "float32"
    return "two_roundings"


def at_run_time(product: Product) -> dict:
    """Returns how a kernel quantizes what it reads in float.

    XNNPACK multiplies a convolution of single points as FULLY_CONNECTED, vector by vector.
    Depthwise kernels, and those of 4-bit weights that XNNPACK does not take, are LiteRT's own.
    """
    narrow, dense = product.weight_bits <= 4, product.operator == "FULLY_CONNECTED"
    own = product.operator == "DEPTHWISE_CONV_2D"
    own |= narrow and (product.operator == "CONV_2D" or (dense and product.depth % 2 == 1))
    by_vector = dense or (product.operator == "CONV_2D" and product.pointwise and not own)
    return {"by_vector": by_vector, "rounding": "twice" if own else "once"}


LITERT = Device(
    "litert",
    "LiteRT's default kernels on x86-64",
    OPERATORS,
    rounding,
    machines=("x86_64", "amd64"),
    at_run_time=at_run_time,
)
