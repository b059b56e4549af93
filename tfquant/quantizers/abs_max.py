"""Weights: symmetric, scaled by their largest magnitude."""

import keras

from tfquant.numerics import QuantParams
from tfquant.quantizers.weight import WeightQuantizer, positive


@keras.saving.register_keras_serializable(package="tfquant")
class AbsMax(WeightQuantizer):
    """Symmetric grid whose range is the largest magnitude of the values, times `clip`.

        scale = clip * max(|w|) / qmax

    The scale follows the weights while they train; `clip` (one for each channel, 1 at first) is
    set by `fit` and stands still. Gradients pass straight through where nothing is clipped
    (Jacob et al. 2018, arXiv:1712.05877, section 3).

    Args:
        spec: Symmetric `QuantSpec`, per tensor or per axis.
    """

    def build(self, input_shape):
        """Creates `clip`, with length 1 along every axis that shares a scale."""
        super().build(input_shape)
        self.clip = self.add_weight(
            shape=self.scale_shape,
            initializer="ones",
            name="clip",
            trainable=False,
            dtype="float32",
        )

    def params(self, x=None) -> QuantParams:
        """Returns `scale` of the shape of `clip` and `zero_point` 0."""
        # A product: graph optimizers turn a division by a constant into one, which rounds
        # differently, and the same model would have other integers in a graph than outside.
        scale = self.largest(x) * self.clip * (1.0 / self.spec.qmax)
        return QuantParams(positive(scale), 0)

    def fit(self, w) -> None:
        """Sets `clip` to the fraction with the least squared error, channel by channel."""
        self.clip.assign(self.best_clip(w))
