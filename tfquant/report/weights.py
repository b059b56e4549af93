"""What a report says of the weights of a layer, whatever format they go to."""

import math

import numpy as np

from tfquant.configs.linear import LinearConfig
from tfquant.numerics.arrays import array_of


def weight_fields(unit) -> dict:
    """Returns those fields of a `LayerReport` that tell of the weights of a `LoweredUnit`."""
    fields = {"note": _note(unit)}
    if unit.kernels:
        kernel = unit.kernels[0]
        fields |= {"weight_bits": 16, "weight_sqnr": _weight_sqnr(unit), "dynamic": unit.dynamic}
        fields["weight_bytes"] = sum(_num_bytes(kernel) for kernel in unit.kernels)
        if kernel.spec is not None:
            fields |= {
                "weight_bits": kernel.spec.num_bits,
                "granularity": _granularity(kernel),
                "scale": (float(kernel.scale.min()), float(kernel.scale.max())),
            }
    return fields


def _num_bytes(kernel):
    """Returns the bytes of a kernel in a file, which holds 4 or 8 bits, or half precision."""
    stored = 16 if kernel.spec is None else 4 if kernel.spec.num_bits <= 4 else 8
    return (math.prod(kernel.variable.shape) * stored + 7) // 8


def _granularity(kernel):
    if kernel.group_size:
        return f"{kernel.scale.size} groups of {kernel.group_size}"
    return "tensor" if len(kernel.scale) == 1 else f"{len(kernel.scale)} channels"


def _note(unit):
    config = getattr(unit.layer, "quantize_config", None)
    return config.why_not_grouped(unit.layer.layer) if isinstance(config, LinearConfig) else ""


def _weight_sqnr(unit):
    variable, quantizer = unit.layer.weight_quantizers[0]
    weights = variable.numpy()
    return sqnr(weights, array_of(quantizer.call(weights)))


def sqnr(signal, received) -> float | None:
    """Returns `10 * log10(sum(signal**2) / sum((signal - received)**2))` in dB.

    `None` where the signal is zero; infinite noise-free ratios are given as 200 dB.
    """
    power, noise = _squares(signal), _squares(signal - received)
    if power == 0:
        return None
    return 200.0 if noise == 0 else float(10 * np.log10(power / noise))


def _squares(x):
    """Returns the sum of squares, without a copy of all values in float64."""
    x = x.reshape(-1)
    return float(np.einsum("i,i->", x, x, dtype=np.float64))
