"""Activations whose range follows a moving average of what training sees."""

import keras
import tensorflow as tf
from keras import ops

from tfquant.numerics import QuantParams
from tfquant.numerics.learned import range_params
from tfquant.observers.min_max import grid_has_room
from tfquant.quantizers.families import ACTIVATION_QUANTIZERS, family
from tfquant.quantizers.static import Static


@family(ACTIVATION_QUANTIZERS, "moving_average")
@keras.saving.register_keras_serializable(package="tfquant")
class MovingAverage(Static):
    """Grid of an activation that follows the extremes of the batches it is trained on.

        low  <- momentum * low  + (1 - momentum) * min(x, 0)
        high <- momentum * high + (1 - momentum) * max(x, 0)

    Begins at the calibrated range. A grid of more than 8 bits takes in what it sees and keeps it,

        low <- min(low, x),  high <- max(high, x)

    since it has steps to spare: the average over small batches is far inside of what rows reach,
    and to clip that costs more than the finest step gains. On several replicas the extremes are
    those of the global batch. Gradients pass straight through inside the range and are zero outside
    (Jacob et al. 2018, arXiv:1712.05877, section 3.1).

    Args:
        spec: `QuantSpec`, per tensor.
        momentum: Share of the old range kept in each step.

    Attributes:
        frozen: Whether the range stands still. It shapes the graph, as `active` does.
        clamp: `(low, high)` of the activation in front of it, `None` for no bound: a ReLU is
            `(0, None)`; `None` for no activation. The range stays inside.
    """

    def __init__(self, spec, group: str | None = None, momentum: float = 0.99, **kwargs):
        super().__init__(spec, group, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1). Received: momentum={momentum}.")
        self.momentum = momentum
        self.frozen = False
        self.clamp = None

    def build(self, input_shape=None):
        """Creates what `Static` has, and `bounds`: the lowest and the highest value."""
        super().build(input_shape)
        self.bounds = self._variable("bounds", (2,))

    def set_params(self, params: QuantParams) -> None:
        super().set_params(params)
        scale, zero_point = float(params.scale), float(params.zero_point)
        self.bounds.assign([scale * (q - zero_point) for q in (self.spec.qmin, self.spec.qmax)])

    @property
    def clamps(self) -> bool:
        """Whether the grid does not reach beyond `clamp`. It shapes the graph."""
        if self.clamp is None or self.spec.num_bits > 8 or not self.calibrated:
            return False
        with tf.init_scope():
            scale, zero_point = float(self.scale.numpy()), float(self.zero_point.numpy())
        low, high = (scale * (q - zero_point) for q in (self.spec.qmin, self.spec.qmax))
        rounding = 1 + 2.0**-20
        lowest, highest = self.clamp
        return (lowest is None or low >= lowest * rounding) and (
            highest is None or high <= highest * rounding
        )

    def train(self, x):
        if not self.frozen:
            self._follow(x)
        return super().train(x)

    def still(self, x):
        if not self.calibrated:
            return x
        return ops.cast(super().train(ops.cast(x, "float32")), x.dtype)

    def _follow(self, x):
        x = ops.stop_gradient(x)
        lowest, highest = self._extremes(x, *(self.clamp or (None, None)))
        extremes = ops.stack([lowest, -highest])
        extremes = _smallest_of_replicas(extremes)
        signs, kept = ops.array([1.0, -1.0]), self.momentum
        if grid_has_room(self.spec):
            bounds = ops.minimum(self.bounds.value * signs, extremes) * signs
        else:
            bounds = self.bounds.value * kept + extremes * signs * (1 - kept)
        params = range_params(bounds[0], bounds[1], self.spec)
        self.bounds.assign(bounds)
        self.scale.assign(params.scale)
        self.zero_point.assign(params.zero_point)

    def _extremes(self, x, low, high):
        """Returns the least and the largest value of `x` within `low` and `high`, and of zero."""
        # Nobody looks for the least behind a ReLU.
        lowest = ops.zeros(()) if low == 0 else ops.minimum(ops.min(x), 0.0)
        highest = ops.maximum(ops.max(x), 0.0)
        return (
            lowest if low is None else ops.maximum(lowest, low),
            highest if high is None else ops.minimum(highest, high),
        )

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


def _smallest_of_replicas(x):
    """Returns the elementwise minimum of a vector over all replicas of a `tf.distribute` step."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x
    return tf.reduce_min(context.all_gather(x[None], axis=0), axis=0)
