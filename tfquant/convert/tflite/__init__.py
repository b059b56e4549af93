"""LiteRT files (`.tflite`): conversion, inspection and comparison."""

from tfquant.convert.tflite.convert import to_tflite

__all__ = ["to_tflite"]
