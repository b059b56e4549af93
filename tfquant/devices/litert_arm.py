"""`litert_arm`: LiteRT's default kernels on ARM64: phones.

All kernels of XNNPACK give the integers that they give on x86-64, on processors with and without
dot products and matrix instructions; what LiteRT computes itself differs in seven places. Found by
comparing LiteRT 2.3 on an emulated Cortex-A53, Cortex-A76 and one with matrix instructions with
the ways in which each can be computed, over 24 million values.
"""

import dataclasses

from keras import ops

from tfquant.devices import litert
from tfquant.devices.device import Device, Product
from tfquant.kernels import tables


def product(inputs, output):
    """Multiplies integers, then scales once, halves upward: `floor((a * b) * m + 1/2)`."""
    a, b = inputs
    m = ops.cast(a.params.scale * b.params.scale / output.params.scale, "float64")
    steps = ops.cast(a.steps, "float64") * ops.cast(b.steps, "float64")
    return ops.floor(steps * m + 0.5)


def _other(name, kernels):
    """Returns the operator as on x86-64, but for its kernels of some widths."""
    row = litert.OPERATORS[name]
    return dataclasses.replace(row, steps={**row.steps, **kernels})


OPERATORS = {
    **litert.OPERATORS,
    "EXP": _other("EXP", {16: tables.interpolate("EXP", fused=True)}),
    "GELU": _other("GELU", {16: tables.interpolate("GELU", fused=True)}),
    "MUL": _other("MUL", {8: product}),
    "RSQRT": _other("RSQRT", {16: tables.inverse_root(fused=True)}),
    "SOFTMAX": _other("SOFTMAX", {8: tables.softmax_integer_table}),
}

# The smallest matrix of weights that LiteRT multiplies by a single vector with a kernel of its own.
_VECTOR_CHANNELS, _VECTOR_DEPTH = 4, 8


def rounding(product: Product) -> str:
    """Returns how a kernel rounds: ruy's once, LiteRT's product with one vector twice.

    The vectors are those of one row of the batch: a file with a batch of several rows multiplies by
    more.
    """
    usual = litert.rounding(product)
    if usual != "two_roundings":
        return usual
    vector = (
        product.activation_bits == 8
        and product.columns == 1
        and product.channels >= _VECTOR_CHANNELS
        and product.depth >= _VECTOR_DEPTH
    )
    return "two_roundings" if vector else "one_rounding"


LITERT_ARM = Device(
    "litert_arm",
    "LiteRT's default kernels on ARM64",
    OPERATORS,
    rounding,
    machines=("aarch64", "arm64"),
    at_run_time=litert.at_run_time,
)
