"""A grid that the device dictates."""

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
        scale: The step.
        zero_point: The integer of real zero.
    """

    def __init__(self, spec, scale: float, zero_point: int, **kwargs):
        super().__init__(spec, **kwargs)
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
