"""`litert_reference`: LiteRT's reference kernels, near to what microcontrollers compute."""

import dataclasses

import numpy as np

from tfquant.devices import litert
from tfquant.devices.device import Device, Product
from tfquant.kernels import builtin, tables
from tfquant.numerics.fixed_point import requantize_half_away


def _other(name, kernels):
    """Returns the operator as on x86-64, but for its kernels of some widths, at any steps."""
    row = litert.OPERATORS[name]
    return dataclasses.replace(row, steps={**row.steps, **kernels}, modelled={})


def _at(power, kernel):
    """Returns a kernel that takes the input's step for `2**power`."""

    def at_power(inputs, output):
        (x,) = inputs
        params = x.params._replace(scale=np.float32(2.0**power))
        return kernel((x._replace(params=params),), output)

    return at_power


# What LiteRT 2.3 has no reference kernel for; that of SUM returns nonsense.
REFUSALS = {
    "ELU": "LiteRT has no reference kernel for ELU",
    "SUM": "LiteRT's reference SUM returns nonsense",
}

OPERATORS = {
    **{name: row for name, row in litert.OPERATORS.items() if name not in REFUSALS},
    "ADD": _other("ADD", {8: builtin.add(20), 16: builtin.add(15)}),
    "BATCH_MATMUL": _other("BATCH_MATMUL", {8: builtin.matrix_product(requantize_half_away)}),
    "LOGISTIC": dataclasses.replace(
        litert.OPERATORS["LOGISTIC"], series={16: {-12: _at(-12, tables.logistic_16)}}
    ),
    # It multiplies groups of weights by a scale that is none of theirs.
    "FULLY_CONNECTED": dataclasses.replace(litert.OPERATORS["FULLY_CONNECTED"], grouped=False),
    "LEAKY_RELU": _other("LEAKY_RELU", {8: builtin.leaky_relu}),
    # Logarithms in fixed point, and the lowest integer where one would leave 5 bits.
    "LOG_SOFTMAX": dataclasses.replace(
        litert.OPERATORS["LOG_SOFTMAX"], steps={}, inexact={8: "fixed point"}
    ),
    "MEAN": _other("MEAN", {8: builtin.mean}),
    "MUL": _other("MUL", {8: builtin.product}),
    "QUANTIZE": _other("QUANTIZE", {8: builtin.to_step}),
    "REDUCE_PROD": _other("REDUCE_PROD", {8: builtin.reduce_product}),
    "RESIZE_BILINEAR": _other("RESIZE_BILINEAR", {8: builtin.resize_bilinear}),
    "SUB": _other("SUB", {8: builtin.subtract(20)}),
    "TANH": dataclasses.replace(
        litert.OPERATORS["TANH"],
        series={16: {power: _at(power, tables.tanh_16) for power in (-12, -11)}},
    ),
}


def rounding(product: Product) -> str:
    """Returns how a kernel rounds: FULLY_CONNECTED once, in float64, convolutions twice."""
    if product.operator == "FULLY_CONNECTED":
        return "float64"
    return "short_significand" if product.activation_bits > 8 else "half_away"


def at_run_time(product: Product) -> dict:
    """Returns how a kernel quantizes what it reads in float; FULLY_CONNECTED vector by vector."""
    return {"by_vector": product.operator == "FULLY_CONNECTED", "rounding": "twice"}


LITERT_REFERENCE = Device(
    "litert_reference",
    "LiteRT's reference kernels, near to microcontrollers",
    OPERATORS,
    rounding,
    resolver="BUILTIN_REF",
    refusals=REFUSALS,
    at_run_time=at_run_time,
)
