"""Model in, model out: choose layers, quantize them, and make them float again for converters."""

from tfquant.rewrite.annotate import quantize_annotate_layer, quantize_annotate_model
from tfquant.rewrite.apply import quantize_apply, quantize_model

__all__ = [
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
]
