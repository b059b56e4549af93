"""`tflm`: TensorFlow Lite Micro's reference kernels, for microcontrollers.

They are LiteRT's reference kernels but for what stands here: all of it rounds twice, or by a
significand of 15 bits in 16 bits, weights of 4 bits run in convolutions, and fewer operators are
there. Libraries of a maker (CMSIS-NN, ESP-NN) keep the same contract.

Source: the interpreter of PyPI `tflite-micro` of 2026-10, which the tests compare each row with.
"""

import dataclasses

from tfquant.devices import litert, litert_reference
from tfquant.devices.device import INPUTS, OWN, Device, Operator, Product
from tfquant.kernels import builtin, micro
from tfquant.numerics.fixed_point import requantize_fixed_point_64, requantize_half_away

NAME = "TensorFlow Lite Micro"

# What has no integer kernel, or none at all.
_ABSENT = ("GELU", "RANK", "REDUCE_PROD", "RELU_N1_TO_1", "SELECT", "TILE")
_FLOAT_ONLY = ("EXP", "LOG")
REFUSALS = {
    **{name: f"{NAME} has no {name}" for name in _ABSENT},
    **{name: f"{NAME} computes {name} of float32 only" for name in _FLOAT_ONLY},
}

# What has no kernel of 16 bits.
_NARROW = (
    *("ARG_MAX", "ARG_MIN", "BATCH_TO_SPACE_ND", "DEPTH_TO_SPACE", "ELU", "EQUAL", "GATHER"),
    *("GATHER_ND", "L2_NORMALIZATION", "LOG_SOFTMAX", "MIRROR_PAD", "NOT_EQUAL", "REDUCE_MAX"),
    *("REDUCE_MIN", "RESIZE_BILINEAR", "RSQRT", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH"),
)


def _of(rows, name, kernels, **changes):
    """Returns an operator's row with other kernels of some widths, at any steps."""
    steps = {**rows[name].steps, **kernels}
    return dataclasses.replace(rows[name], **{"steps": steps, "modelled": {}, **changes})


def _narrow(operator: Operator) -> Operator:
    steps = {bits: kernel for bits, kernel in operator.steps.items() if bits == 8}
    return dataclasses.replace(operator, steps=steps, num_bits=(8,), series={})


_ROWS = {
    **litert_reference.OPERATORS,
    "BATCH_MATMUL": _of(
        litert.OPERATORS,
        "BATCH_MATMUL",
        {
            8: micro.matrix_product(requantize_half_away),
            16: micro.matrix_product(requantize_fixed_point_64),
        },
    ),
    # A step for each output channel is for weights of 8 bits.
    "CONV_2D": Operator(OWN, weight_bits=4),
    "DEPTHWISE_CONV_2D": Operator(OWN, weight_bits=4),
    "ELU": litert.OPERATORS["ELU"],
    "FULLY_CONNECTED": Operator(OWN, weight_bits=8),
    "LEAKY_RELU": _of(litert.OPERATORS, "LEAKY_RELU", {8: micro.leaky_relu, 16: micro.leaky_relu}),
    "LOG_SOFTMAX": litert.OPERATORS["LOG_SOFTMAX"],
    "MUL": _of(litert.OPERATORS, "MUL", {8: micro.product, 16: micro.product}),
    # It bounds integers and does not scale them, so that they are brought to its grid before.
    "RELU6": _of(
        litert.OPERATORS,
        "RELU6",
        {bits: builtin.clamped(builtin.to_step, 0.0, 6.0) for bits in (8, 16)},
        grid=INPUTS,
    ),
    "SOFTMAX": _of(litert.OPERATORS, "SOFTMAX", {16: micro.softmax}),
    "SUM": _of(litert.OPERATORS, "SUM", {8: micro.total, 16: micro.total}),
}

OPERATORS = {
    name: _narrow(row) if name in _NARROW else row
    for name, row in _ROWS.items()
    if name not in REFUSALS
}


def rounding(product: Product) -> str:
    """Returns how a kernel rounds: twice, or once with a significand of 15 bits."""
    return "short_significand" if product.activation_bits > 8 else "half_away"


TFLM = Device(
    "tflm",
    f"{NAME}'s kernels, for microcontrollers",
    OPERATORS,
    rounding,
    refusals=REFUSALS,
    runtime="tflm",
    # DEQUANTIZE takes the first channel's step for all, and reads no half precision.
    dequantizes=False,
)
