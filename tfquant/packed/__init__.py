"""From quantized models to Keras models on packed weights."""

from tfquant.packed.convert import to_packed

__all__ = ["to_packed"]
