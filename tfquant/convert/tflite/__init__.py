"""LiteRT files (`.tflite`): conversion, inspection and comparison."""

from tfquant.convert.tflite.compare import compare
from tfquant.convert.tflite.convert import to_tflite
from tfquant.convert.tflite.inspect import FileSummary, OperatorSummary, inspect

__all__ = ["FileSummary", "OperatorSummary", "compare", "inspect", "to_tflite"]
