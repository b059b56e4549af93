"""Weights stored as half-precision floats."""

import keras
from keras import ops

from tfquant.numerics import QuantParams
from tfquant.quantizers.base import Quantizer, RecordingScope

# Of half precision; what is beyond becomes this, not infinity.
LARGEST = 65504.0


@keras.saving.register_keras_serializable(package="tfquant")
class Float16(Quantizer):
    """Rounds weights to IEEE 754 half precision; they are computed with in float32."""

    def __init__(self, **kwargs):
        kwargs.pop("spec", None)
        super().__init__(spec=None, **kwargs)

    def build(self, input_shape=None):
        """Has no variables."""
        del input_shape
        self.built = True

    def params(self, x=None) -> QuantParams:
        """There is no integer grid.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("float16 weights have no scale and zero point.")

    def call(self, x, training=None):
        """Returns `x` rounded to half precision."""
        del training
        scope = RecordingScope.current()
        if scope is not None and not scope.quantize_weights:
            return x
        return ops.cast(ops.cast(ops.clip(x, -LARGEST, LARGEST), "float16"), x.dtype)

    def get_config(self):
        config = keras.layers.Layer.get_config(self)
        return config

    @classmethod
    def from_config(cls, config):
        return cls(**config)
