"""Quantized models to ONNX files."""

from tfquant.onnx.convert import to_onnx

__all__ = ["to_onnx"]
