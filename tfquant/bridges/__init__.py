"""Models quantized elsewhere, with the integers that they hold."""

from tfquant.bridges.keras_quantized import from_keras_quantized
from tfquant.bridges.tf_keras import from_tf_keras
from tfquant.bridges.tfmot import from_tfmot

__all__ = ["from_keras_quantized", "from_tf_keras", "from_tfmot"]
