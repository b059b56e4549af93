"""tfquant: from any Keras 3 model to a small, fast, verified integer model."""

import tfquant.backend  # noqa: F401  # Refuses what Keras cannot be, before all else.

# isort: split
from tfquant import observers, quantizers
from tfquant.about import __version__
from tfquant.bridges import from_keras_quantized, from_tf_keras, from_tfmot
from tfquant.c import ExportReport, export_c
from tfquant.calibrate import calibrate
from tfquant.litert import compare, inspect, run
from tfquant.numerics import PerAxis, PerGroup, PerTensor, QuantParams, QuantSpec
from tfquant.onnx import to_onnx
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
from tfquant.report import (
    ConversionReport,
    OnnxReport,
    PackingReport,
    QuantizationTensorBoard,
    summarize,
)
from tfquant.rewrite import (
    quantize_annotate_layer,
    quantize_annotate_model,
    quantize_apply,
    quantize_model,
)
from tfquant.search import AutoResult, Budget, SearchResult, autoquantize, search
from tfquant.sensitivity import Sensitivity, sensitivity
from tfquant.speed import benchmark
from tfquant.targets import check
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
    finetune,
)
from tfquant.wrappers import QuantizeConfig, QuantizeWrapper

__all__ = [
    "AWQ",
    "BRECQ",
    "GPTQ",
    "SCHEMES",
    "AdaRound",
    "AutoResult",
    "Budget",
    "Codebook",
    "ConversionReport",
    "DampenOscillation",
    "Equalize",
    "ExportReport",
    "FloatWarmup",
    "FreezeBatchNorm",
    "FreezeOscillation",
    "FreezeRanges",
    "OnnxReport",
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
    "SearchResult",
    "Sensitivity",
    "SmoothQuant",
    "TerminateOnNaN",
    "WeightOnlyQuantizer",
    "__version__",
    "autoquantize",
    "benchmark",
    "calibrate",
    "check",
    "compare",
    "distill",
    "export_c",
    "finetune",
    "from_keras_quantized",
    "from_tf_keras",
    "from_tfmot",
    "inspect",
    "observers",
    "optimize",
    "quantize",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "quantizers",
    "run",
    "search",
    "sensitivity",
    "summarize",
    "to_onnx",
    "to_packed",
    "to_tflite",
]
