"""Models quantized elsewhere, with the integers that they hold."""

from tfquant.bridges.keras_quantized import from_keras_quantized

__all__ = ["from_keras_quantized"]
