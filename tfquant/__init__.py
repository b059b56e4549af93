"""tfquant: from any Keras 3 model to a small, fast, verified integer model."""

from tfquant import observers, quantizers
from tfquant.calibrate import calibrate
from tfquant.litert import compare, inspect
from tfquant.numerics import PerAxis, PerGroup, PerTensor, QuantParams, QuantSpec
from tfquant.optimize import (
    AWQ,
    BRECQ,
    GPTQ,
    AdaRound,
    Codebook,
    Equalize,
    Oscar,
    SmoothQuant,
    optimize,
    quantize,
)
from tfquant.packed import to_packed
from tfquant.quantizers import WeightOnlyQuantizer
from tfquant.registry import SCHEMES, QuantizeRegistry, Recipe, Scheme
from tfquant.report import ConversionReport, PackingReport, QuantizationTensorBoard, summarize
from tfquant.rewrite import (
    quantize_annotate_layer,
    quantize_annotate_model,
    quantize_apply,
    quantize_model,
)
from tfquant.tflite import to_tflite
from tfquant.train import (
    DampenOscillation,
    FloatWarmup,
    FreezeBatchNorm,
    FreezeOscillation,
    FreezeRanges,
    PrecisionSchedule,
    TerminateOnNaN,
    distill,
)
from tfquant.wrappers import QuantizeConfig, QuantizeWrapper

__all__ = [
    "AWQ",
    "BRECQ",
    "GPTQ",
    "SCHEMES",
    "AdaRound",
    "Codebook",
    "ConversionReport",
    "DampenOscillation",
    "Equalize",
    "FloatWarmup",
    "FreezeBatchNorm",
    "FreezeOscillation",
    "FreezeRanges",
    "Oscar",
    "PackingReport",
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "PrecisionSchedule",
    "QuantParams",
    "QuantSpec",
    "QuantizationTensorBoard",
    "QuantizeConfig",
    "QuantizeRegistry",
    "QuantizeWrapper",
    "Recipe",
    "Scheme",
    "SmoothQuant",
    "TerminateOnNaN",
    "WeightOnlyQuantizer",
    "calibrate",
    "compare",
    "distill",
    "inspect",
    "observers",
    "optimize",
    "quantize",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "quantizers",
    "summarize",
    "to_packed",
    "to_tflite",
]
