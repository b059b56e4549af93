"""tfquant: from any Keras 3 model to a small, fast, verified integer model."""

from tfquant import quantizers
from tfquant.calibrate import calibrate
from tfquant.convert.tflite import compare, inspect, to_tflite
from tfquant.numerics import PerAxis, PerGroup, PerTensor, QuantParams, QuantSpec
from tfquant.registry import SCHEMES, QuantizeRegistry, Scheme
from tfquant.report import ConversionReport, summarize
from tfquant.rewrite import (
    quantize_annotate_layer,
    quantize_annotate_model,
    quantize_apply,
    quantize_model,
)
from tfquant.wrappers import QuantizeConfig, QuantizeWrapper

__all__ = [
    "SCHEMES",
    "ConversionReport",
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "QuantParams",
    "QuantSpec",
    "QuantizeConfig",
    "QuantizeRegistry",
    "QuantizeWrapper",
    "Scheme",
    "calibrate",
    "compare",
    "inspect",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "quantizers",
    "summarize",
    "to_tflite",
]
