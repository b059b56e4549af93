"""Activations quantized at run time, row by row or vector by vector."""

import keras
from keras import ops

from tfquant.numerics import QuantParams, run_time
from tfquant.quantizers.base import Quantizer, RecordingScope


@keras.saving.register_keras_serializable(package="tfquant")
class Dynamic(Quantizer):
    """Asymmetric grid found anew whenever a model runs, as dynamic-range kernels do.

        scale = (max(x, 0) - min(x, 0)) / 255

    The range is that of a row of the batch, or that of a vector, what lies along the last axis.
    The file holds float activations; the kernel quantizes its input when it runs.

    Args:
        spec: `QuantSpec` of 8 bits, asymmetric.
        by_vector: Whether each vector has a grid of its own, and not each row of the batch.
        rounding: How the kernel rounds, a name of `tfquant.numerics.run_time.ROUNDINGS`.
    """

    def __init__(self, spec, by_vector: bool = False, rounding: str = "once", **kwargs):
        super().__init__(spec, **kwargs)
        self.by_vector, self.rounding = by_vector, rounding

    def build(self, input_shape=None):
        """Has no variables."""
        del input_shape
        self.built = True

    def steps(self, x):
        """Returns the integers of `x` in float32, and `QuantParams` of length 1 along each grid."""
        x = ops.cast(x, "float32")
        axes = (-1,) if self.by_vector else tuple(range(1, len(x.shape)))
        low = ops.minimum(ops.min(x, axis=axes, keepdims=True), 0.0)
        high = ops.maximum(ops.max(x, axis=axes, keepdims=True), 0.0)
        return run_time.ROUNDINGS[self.rounding](low, high, x)

    def params(self, x=None) -> QuantParams:
        """Returns a `scale` and `zero_point` for each row or vector, with length 1 along it."""
        return self.steps(x)[1]

    def train(self, x):
        """Rounds `x`; gradients pass straight through, as no value is clipped."""

        @ops.custom_gradient
        def rounded(x):
            steps, params = self.steps(x)
            y = (steps - params.zero_point) * params.scale
            return y, lambda *args, upstream=None: args[0] if upstream is None else upstream

        return rounded(x)

    def call(self, x, training=None):
        """Returns `x` rounded to its own grid, of which the next layer is told nothing."""
        if RecordingScope.current() is not None or not self.calibrated:
            return x
        y = self.train(ops.cast(x, "float32"))
        return ops.cast(y, x.dtype) if training else y

    def get_config(self):
        settings = {"by_vector": self.by_vector, "rounding": self.rounding}
        return {**super().get_config(), **settings}
