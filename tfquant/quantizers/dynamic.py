"""Activations quantized at run time, row by row or vector by vector."""

import keras
from keras import ops

from tfquant.numerics import QuantParams
from tfquant.quantizers.base import Quantizer, RecordingScope


@keras.saving.register_keras_serializable(package="tfquant")
class Dynamic(Quantizer):
    """Asymmetric grid found anew whenever a model runs, as dynamic-range kernels do.

        scale = (max(x, 0) - min(x, 0)) / (qmax - qmin)

    The range is that of a row of the batch for convolutions, and that of a vector, what lies along
    the last axis, for dense kernels. The file holds float activations; the kernel quantizes its
    input when it runs.

    Args:
        spec: `QuantSpec`, asymmetric.
        by_vector: Whether each vector has a grid of its own, and not each row of the batch.
    """

    def __init__(self, spec, by_vector: bool = False, **kwargs):
        super().__init__(spec, **kwargs)
        self.by_vector = by_vector

    def build(self, input_shape=None):
        """Has no variables."""
        del input_shape
        self.built = True

    def params(self, x=None) -> QuantParams:
        """Returns a `scale` and `zero_point` for each row or vector, with length 1 along it."""
        axes = (-1,) if self.by_vector else tuple(range(1, len(x.shape)))
        x = ops.cast(x, "float32")
        low = ops.minimum(ops.min(x, axis=axes, keepdims=True), 0.0)
        high = ops.maximum(ops.max(x, axis=axes, keepdims=True), 0.0)
        span = high - low
        # A product, for the reason given in `AbsMax.params`.
        unit = 1.0 / (self.spec.qmax - self.spec.qmin)
        scale = ops.where(span > 0, span, ops.ones_like(span)) * unit
        scale = ops.stop_gradient(scale)
        zero_point = ops.clip(
            ops.round(self.spec.qmin - low / scale), self.spec.qmin, self.spec.qmax
        )
        return QuantParams(scale, ops.stop_gradient(zero_point))

    def call(self, x, training=None):
        """Returns `x` rounded to its own grid, of which the next layer is told nothing."""
        if RecordingScope.current() is not None:
            return x
        y = super().call(x, training=training)
        y.tfquant_grid = None
        return y

    def get_config(self):
        return {**super().get_config(), "by_vector": self.by_vector}
