"""What a conversion did, as plain objects, JSON and tables."""

from tfquant.report.conversion import (
    ROUNDED,
    ConversionReport,
    FloatOperator,
    LayerReport,
    Parity,
    PartReport,
    TensorReport,
)
from tfquant.report.model import LayerSummary, ModelSummary, summarize
from tfquant.report.onnx import OnnxReport
from tfquant.report.packing import PackedLayerReport, PackingReport
from tfquant.report.printable import Printable, plain_table
from tfquant.report.tensorboard import QuantizationTensorBoard

__all__ = [
    "ROUNDED",
    "ConversionReport",
    "FloatOperator",
    "LayerReport",
    "LayerSummary",
    "ModelSummary",
    "OnnxReport",
    "PackedLayerReport",
    "PackingReport",
    "Parity",
    "PartReport",
    "Printable",
    "QuantizationTensorBoard",
    "TensorReport",
    "plain_table",
    "summarize",
]
