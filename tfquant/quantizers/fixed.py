"""A grid that the device dictates."""

import math

import keras

from tfquant.numerics import QuantParams
from tfquant.quantizers.base import Quantizer


@keras.saving.register_keras_serializable(package="tfquant")
class Fixed(Quantizer):
    """A grid given once and for all, such as 1/256 for the output of a softmax.

    The TFLite 8-bit quantization specification fixes the output of LOGISTIC and SOFTMAX to scale
    1/256 and zero point -128, and that of TANH to scale 1/128 and zero point 0.

    Args:
        spec: `QuantSpec`, per tensor.
        scale: The step, a power of two: graph optimizers turn a division by a constant into a
            product, which is the same only for those.
        zero_point: The integer of real zero.

    Raises:
        ValueError: If `scale` is no power of two.
    """

    def __init__(self, spec, scale: float, zero_point: int, **kwargs):
        super().__init__(spec, **kwargs)
        if scale <= 0 or not math.log2(scale).is_integer():
            raise ValueError(f"`scale` must be a power of two. Received: scale={scale}.")
        self.scale = float(scale)
        self.zero_point = int(zero_point)

    def build(self, input_shape=None):
        """Has no variables."""
        del input_shape
        self.built = True

    def params(self, x=None) -> QuantParams:
        """Returns the two numbers."""
        del x
        return QuantParams(
            keras.ops.convert_to_tensor(self.scale, "float32"),
            keras.ops.convert_to_tensor(self.zero_point, "float32"),
        )

    def get_config(self):
        return {**super().get_config(), "scale": self.scale, "zero_point": self.zero_point}
