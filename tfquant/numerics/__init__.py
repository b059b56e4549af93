"""Quantization arithmetic on arrays: specifications, parameters, affine and fixed-point maps."""

from tfquant.numerics.affine import (
    dequantize,
    fake_quantize,
    fake_quantize_at_once,
    group_scale,
    quantize,
)
from tfquant.numerics.params import QuantParams, choose_params
from tfquant.numerics.spec import PerAxis, PerGroup, PerTensor, QuantSpec

__all__ = [
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "QuantParams",
    "QuantSpec",
    "choose_params",
    "dequantize",
    "fake_quantize",
    "fake_quantize_at_once",
    "group_scale",
    "quantize",
]
