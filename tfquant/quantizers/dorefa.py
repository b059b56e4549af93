"""Weights bounded by a hyperbolic tangent (DoReFa-Net)."""

import keras
from keras import ops

from tfquant.quantizers.families import WEIGHT_QUANTIZERS, family
from tfquant.quantizers.weight import WeightQuantizer, positive


@family(WEIGHT_QUANTIZERS, "dorefa")
@keras.saving.register_keras_serializable(package="tfquant")
class DoReFa(WeightQuantizer):
    """Rounds `tanh(w)` on a grid that ends at its largest magnitude.

        t = tanh(w),  scale = max(|t|) / qmax,  y = scale * round(t / scale)
        dy/dw = 1 - tanh(w)^2

    The tangent keeps outliers from stretching the grid. Zhou et al. 2016, "DoReFa-Net",
    arXiv:1606.06160, equation 9, with two changes: the grid is symmetric and holds zero, as integer
    kernels ask; and the largest magnitude is kept where the paper makes it one, so that a trained
    model starts near what it was.

    Args:
        spec: Symmetric `QuantSpec`, per tensor, per axis or per group.
    """

    def real_steps(self, x=None):
        """Returns the tangents of the largest magnitudes, in steps of the grid."""
        return positive(ops.tanh(self.largest(x)) * (1.0 / self.spec.qmax), self.spec)

    def latent(self, w):
        """Returns `tanh(w)`."""
        return ops.tanh(w)
