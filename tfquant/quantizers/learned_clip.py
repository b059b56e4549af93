"""Activations with a learned clip (PACT)."""

import keras
from keras import ops

from tfquant.numerics import QuantParams
from tfquant.numerics.learned import fake_quantize_clip, range_params, relative
from tfquant.quantizers.families import ACTIVATION_QUANTIZERS, family
from tfquant.quantizers.static import Static


@family(ACTIVATION_QUANTIZERS, "learned_clip")
@keras.saving.register_keras_serializable(package="tfquant")
class LearnedClip(Static):
    """An activation whose clip is trained (PACT); see `numerics.learned.fake_quantize_clip`.

    `alpha`, in units of the calibrated clip, scales the calibrated range as a whole. The paper has
    a ReLU before it, whose range begins at zero; other ranges keep their proportions.

    Choi et al. 2018, arXiv:1805.06085.

    Args:
        spec: `QuantSpec`, per tensor.
        regularizer: Keras regularizer of `alpha`, which the paper pulls down by an L2 term.
    """

    def __init__(self, spec, group: str | None = None, regularizer=None, **kwargs):
        super().__init__(spec, group, **kwargs)
        self.regularizer = keras.regularizers.get(regularizer)

    def build(self, input_shape=None):
        """Creates what `Static` has, and `alpha`."""
        super().build(input_shape)
        self.alpha = self.add_number("alpha", 1.0, regularizer=self.regularizer)

    def set_params(self, params: QuantParams) -> None:
        super().set_params(params)
        self.alpha.assign(1.0)

    def params(self, x=None) -> QuantParams:
        """Returns scalars `scale` and `zero_point`."""
        del x
        alpha, low, high = self._clip()
        return range_params(alpha * low, alpha * high, self.spec)

    def train(self, x):
        return fake_quantize_clip(x, *self._clip(), self.spec)

    def _clip(self):
        """Returns `alpha` as a real value, and both ends of the range in units of it."""
        scale, zero_point = self.scale.value, self.zero_point.value
        low, high = self.spec.qmin - zero_point, self.spec.qmax - zero_point
        largest = ops.maximum(-low, high)
        alpha = relative(ops.maximum(self.alpha.value, 2.0**-7), scale * largest)
        return alpha, low / largest, high / largest

    def get_config(self):
        regularizer = keras.regularizers.serialize(self.regularizer) if self.regularizer else None
        return {**super().get_config(), "regularizer": regularizer}
