"""A quantized model and the float model behind it, run side by side."""

from tfquant.streams.ahead import ahead_of
from tfquant.streams.streams import Streams, call

__all__ = ["Streams", "ahead_of", "call"]
