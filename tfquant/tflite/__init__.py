"""Quantized models to LiteRT files (`.tflite`)."""

from tfquant.tflite.convert import to_tflite

__all__ = ["to_tflite"]
