"""Constant factors and shifts of channels."""

import keras
import numpy as np

from tfquant.layers.parts import ChannelAffine
from tfquant.wrappers import QuantizeAnnotate


def channel_affine(x, factor, shift, trainable, name):
    """Returns `x * factor + shift`, or `None` if the channels of `x` are not known.

    Args:
        x: KerasTensor `(batch, ..., channels)`.
        factor: Number, or one for each channel.
        shift: Likewise.
        trainable: Whether both train.
        name: Name of the layer.
    """
    channels = x.shape[-1]
    if channels is None or not 2 <= len(x.shape) <= 4 or "float" not in x.dtype:
        return None
    layer = ChannelAffine(trainable=trainable, name=name)
    layer.build(x.shape)
    factor, shift = (np.broadcast_to(v, channels).astype(np.float32) for v in (factor, shift))
    layer.set_weights([factor, shift, np.zeros(channels), np.ones(channels)])
    return QuantizeAnnotate(layer)(x)


def hard_sigmoid(x, name):
    """Returns `relu6(x + 3) / 6`, or `None` if the channels of `x` are not known.

    A kernel in front of it takes the shift and the clamp.
    """
    shifted = channel_affine(x, 1.0, 3.0, False, f"{name}_shifted")
    if shifted is None:
        return None
    clamped = QuantizeAnnotate(keras.layers.ReLU(6.0, name=f"{name}_clamped"))(shifted)
    return channel_affine(clamped, 1.0 / 6.0, 0.0, False, name)


def constants(x) -> np.ndarray:
    """Returns a constant or the value of a variable, as float64 without axes of length 1."""
    return np.asarray(keras.ops.convert_to_numpy(x), np.float64).reshape(-1)
