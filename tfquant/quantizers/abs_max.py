"""Weights: symmetric, scaled by their largest magnitude."""

import keras

from tfquant.numerics.arrays import ARRAYS, arithmetic, at_hand
from tfquant.quantizers.families import WEIGHT_QUANTIZERS, family
from tfquant.quantizers.weight import WeightQuantizer, positive


@family(WEIGHT_QUANTIZERS, "abs_max")
@keras.saving.register_keras_serializable(package="tfquant")
class AbsMax(WeightQuantizer):
    """Symmetric grid whose range is the largest magnitude of the values, times `clip`.

        scale = clip * max(|w|) / qmax,   or `given`, where steps were given

    The scale follows the weights while they train; `clip` (one for each scale, 1 at first) is set
    by `fit` and stands still, and so do given steps. Gradients pass straight through where nothing
    is clipped (Jacob et al. 2018, arXiv:1712.05877, section 3).

    Args:
        spec: Symmetric `QuantSpec`, per tensor, per axis or per group.
    """

    def build(self, input_shape):
        """Creates `clip` and `given`, one for each scale; `given` is 0 where nobody gave a step."""
        super().build(input_shape)
        self.clip, self.given = (
            self.add_number(name, value, self.scale_shape, trainable=False)
            for name, value in (("clip", 1.0), ("given", 0.0))
        )

    def real_steps(self, x=None):
        """Returns the share `clip` of the largest magnitudes, in steps of the grid; given steps."""
        # A product: graph optimizers turn a division by a constant into one, which rounds
        # differently, and the same model would have other integers in a graph than outside.
        xp = arithmetic(x)
        clip, given = (at_hand(v) if xp is ARRAYS else v.value for v in (self.clip, self.given))
        found = positive(self.largest(x) * clip * (1.0 / self.spec.qmax), self.spec)
        return xp.where(given > 0, given, found)

    def set_steps(self, steps) -> None:
        """Gives the steps."""
        self.given.assign(steps)

    def _scaled_steps(self, gain):
        return [(self.given, self.given.value * gain)]  # What is not given follows the weights.

    def fit(self, w) -> None:
        """Sets `clip` to the fraction with the least squared error, scale by scale."""
        self.clip.assign(self.best_clip(w))
