"""Thresholds that training learns in the logarithmic domain (TQT)."""

import math

import keras
import numpy as np
from keras import ops

from tfquant.numerics import QuantParams
from tfquant.numerics.learned import fake_quantize_step, power_of_two
from tfquant.quantizers.families import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, family
from tfquant.quantizers.static import Static
from tfquant.quantizers.weight import WeightQuantizer


class _Threshold:
    """What weights and activations share; `log2_scale` is `log2(threshold)` less a constant."""

    def _learned_scale(self):
        if self.power_of_two:
            return power_of_two(self.log2_scale.value)
        return ops.exp(self.log2_scale.value * math.log(2.0))

    def get_config(self):
        return {**super().get_config(), "power_of_two": self.power_of_two}


@family(WEIGHT_QUANTIZERS, "learned_threshold")
@keras.saving.register_keras_serializable(package="tfquant")
class LearnedThreshold(_Threshold, WeightQuantizer):
    """A weight whose range is trained through its logarithm (TQT).

        scale = 2 ** v          (`2 ** ceil(v)` for powers of two),  v trained
        dy/dv = scale * ln 2 * (round(w / scale) - w / scale)    inside
        dy/dv = scale * ln 2 * qmin, * qmax                      below, above

    The logarithm makes a step of training the same share of the scale whatever the scale is. Jain
    et al. 2020, arXiv:1903.08066, equations 4 to 8.

    Args:
        spec: Symmetric `QuantSpec`, per tensor, per axis or per group.
        power_of_two: Whether scales are powers of two, for devices that only shift.
    """

    def __init__(self, spec, power_of_two: bool = False, **kwargs):
        super().__init__(spec, **kwargs)
        self.power_of_two = power_of_two

    def build(self, input_shape):
        """Creates `log2_scale`."""
        super().build(input_shape)
        self.log2_scale = self.add_number("log2_scale", shape=self.scale_shape)

    def fit(self, w) -> None:
        """Sets the scales to those with the least squared error for `w`."""
        self.log2_scale.assign(np.log2(ops.convert_to_numpy(self.best_steps(w))))

    def real_steps(self, x=None):
        """Returns the learned scales."""
        del x
        return self._learned_scale()

    def _scaled_steps(self, gain):
        if self.power_of_two:
            return None
        return [(self.log2_scale, self.log2_scale + ops.log2(gain))]

    def train(self, x):
        return fake_quantize_step(x, self.params().scale, None, self.spec)


@family(ACTIVATION_QUANTIZERS, "learned_threshold")
@keras.saving.register_keras_serializable(package="tfquant")
class LearnedThresholdActivation(_Threshold, Static):
    """An activation whose range is trained through its logarithm (TQT).

    The zero point stays the calibrated one; see `LearnedThreshold`.

    Args:
        spec: `QuantSpec`, per tensor.
        power_of_two: Whether scales are powers of two.
    """

    def __init__(self, spec, group: str | None = None, power_of_two: bool = False, **kwargs):
        super().__init__(spec, group, **kwargs)
        self.power_of_two = power_of_two

    def build(self, input_shape=None):
        """Creates what `Static` has, and `log2_scale`."""
        super().build(input_shape)
        self.log2_scale = self.add_number("log2_scale")

    def set_params(self, params: QuantParams) -> None:
        super().set_params(params)
        self.log2_scale.assign(math.log2(float(params.scale)))

    def params(self, x=None) -> QuantParams:
        """Returns scalars `scale` and `zero_point`."""
        del x
        return QuantParams(self._learned_scale(), self.zero_point.value)

    def train(self, x):
        scale = self._learned_scale()
        low = None if self.spec.symmetric else scale * (self.spec.qmin - self.zero_point.value)
        return fake_quantize_step(x, scale, low, self.spec)
