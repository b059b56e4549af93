"""Steps and offsets that training learns (LSQ, LSQ+)."""

import math

import keras
from keras import ops

from tfquant.numerics import QuantParams
from tfquant.numerics.learned import fake_quantize_step, learned_params, relative
from tfquant.quantizers.families import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, family
from tfquant.quantizers.static import Static
from tfquant.quantizers.weight import WeightQuantizer

# A step may shrink to this share of what it began with, no further: it must stay positive.
SMALLEST_STEP = 2.0**-7


@family(WEIGHT_QUANTIZERS, "learned_step")
@keras.saving.register_keras_serializable(package="tfquant")
class LearnedStep(WeightQuantizer):
    """A weight whose steps are trained (LSQ); see `numerics.learned.fake_quantize_step`.

    The step of each channel or group begins where the squared error of the trained weights is
    least. What is trained is `step`, in units of that beginning: plain gradient descent moves the
    scale as in the paper, and Adam by its learning rate of itself.

        g = 1 / sqrt(N * qmax),  N weights to a step

    Esser et al. 2020, arXiv:1902.08153.

    Args:
        spec: Symmetric `QuantSpec`, per tensor, per axis or per group.
    """

    def build(self, input_shape):
        """Creates `initial_scale`, fixed, and `step`, trained."""
        super().build(input_shape)
        self.initial_scale, self.step = (
            self.add_number(name, 1.0, self.scale_shape, trainable=trainable)
            for name, trainable in (("initial_scale", False), ("step", True))
        )
        self.sharers = math.prod(input_shape) // math.prod(self.scale_shape)

    def fit(self, w) -> None:
        """Sets the steps to those with the least squared error for `w`."""
        self.set_steps(self.best_steps(w))

    def set_steps(self, steps) -> None:
        """Sets the steps that training begins with."""
        self.initial_scale.assign(steps)
        self.step.assign(ops.ones_like(self.step))

    def real_steps(self, x=None):
        """Returns the learned steps."""
        del x
        step = ops.maximum(self.step.value, SMALLEST_STEP)
        return relative(step, self.initial_scale.value)

    def _scaled_steps(self, gain):
        return [(self.initial_scale, self.initial_scale * gain)]

    def train(self, x):
        gradient_scale = 1.0 / math.sqrt(self.sharers * self.spec.qmax)
        return fake_quantize_step(x, self.params().scale, None, self.spec, gradient_scale)


@family(ACTIVATION_QUANTIZERS, "learned_step")
@keras.saving.register_keras_serializable(package="tfquant")
class LearnedStepActivation(Static):
    """An activation whose step and (asymmetric grids) offset are trained (LSQ, LSQ+).

    Begins at the calibrated grid. `step` and `low`, the real value of the lowest integer, are kept
    in units of the calibrated scale; see `LearnedStep`.

        g = 1 / sqrt(N * levels),  N values to a sample

    Esser et al. 2020, arXiv:1902.08153; Bhalgat et al. 2020, arXiv:2004.09576.

    Args:
        spec: `QuantSpec`, per tensor.
    """

    def build(self, input_shape=None):
        """Creates what `Static` has, `step` and, for an asymmetric grid, `low`."""
        super().build(input_shape)
        self.step = self.add_number("step", 1.0)
        self.low = None if self.spec.symmetric else self.add_number("low", self.spec.qmin)

    def set_params(self, params: QuantParams) -> None:
        super().set_params(params)
        self.step.assign(1.0)
        if self.low is not None:
            self.low.assign(self.spec.qmin - float(params.zero_point))

    def params(self, x=None) -> QuantParams:
        """Returns scalars `scale` and `zero_point`."""
        del x
        scale, low = self._scale_and_low()
        return learned_params(scale, low, self.spec)

    def train(self, x):
        levels = self.spec.qmax - (self.spec.qmin if self.low is not None else 0)
        features = math.prod(size or 1 for size in x.shape[1:])
        gradient_scale = 1.0 / math.sqrt(features * levels)
        return fake_quantize_step(x, *self._scale_and_low(), self.spec, gradient_scale)

    def _scale_and_low(self):
        step, unit = ops.maximum(self.step.value, SMALLEST_STEP), self.scale.value
        low = None if self.low is None else relative(self.low.value, unit)
        return relative(step, unit), low
