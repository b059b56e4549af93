"""LiteRT files (`.tflite`): what is in them, what they compute, how two of them compare."""

from tfquant.litert.compare import compare
from tfquant.litert.inspect import FileSummary, OperatorSummary, inspect
from tfquant.litert.run import run

__all__ = ["FileSummary", "OperatorSummary", "compare", "inspect", "run"]
