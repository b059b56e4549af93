"""What every quantizer is, and the scope that looks at values before they are quantized."""

import abc

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfquant.layers.scope import Scope
from tfquant.numerics import QuantParams, QuantSpec, fake_quantize, fake_quantize_at_once
from tfquant.quantizers.grid import Grid, on_grid

# The slash makes it the whole name of a scope, whatever scopes are around it.
TENSORFLOW_SCOPE = "grid/"


class Quantizer(keras.layers.Layer, abc.ABC):
    """Maps real values to real values on the grid of `spec`.

    A quantizer is a Keras layer so that Keras tracks, saves and distributes its variables. Its
    owner builds it and calls `call`.

    Args:
        spec: `QuantSpec` of the grid.

    Attributes:
        headroom: How many times the range that calibration finds an activation's grid covers.
        active: Whether values are quantized at all; a schedule turns it off for a float warm-up.
            It shapes the graph: functions traced before must be traced again.
    """

    def __init__(self, spec: QuantSpec, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.spec = spec
        self.group = None
        self.headroom = 1.0
        self.active = True

    def add_number(self, name: str, value: float = 0.0, shape=(), **settings):
        """Returns a new float32 variable that holds `value`; `build` calls it.

        All of a name are one to TensorFlow, which takes several times longer to make a variable
        of a name that it has not met. To Keras each has the path of its quantizer.
        """
        with tf.name_scope(TENSORFLOW_SCOPE):
            return self.add_weight(
                shape=shape,
                initializer=lambda shape, dtype: np.full(shape, value, dtype),
                name=name,
                dtype="float32",
                **settings,
            )

    @property
    def calibrated(self) -> bool:
        """Whether the grid is known. While it is not, values pass through unchanged."""
        return self.active

    def numbers(self) -> QuantParams | None:
        """Returns scale and zero point of an activation as numbers, outside of graphs.

        `None` while the grid is not known.
        """
        if not self.calibrated:
            return None
        # Not `ops.convert_to_numpy`: variables of several workers are no arrays to it.
        scale, zero_point = (np.asarray(v.numpy()) for v in self.params())
        return QuantParams(scale.astype("float32"), int(zero_point))

    @abc.abstractmethod
    def params(self, x=None) -> QuantParams:
        """Returns scale and zero point, from the variables or (weights) from `x` itself."""

    def call(self, x, training=None):
        """Returns `x` rounded to the grid, which it then carries.

        At inference the result is float32, which holds a grid exactly; in training it has the
        dtype of `x`.
        """
        scope = RecordingScope.current()
        if scope is not None:
            return scope.record(self, x)
        if not self.calibrated:
            return self.idle(x, training)
        if training:
            return ops.cast(self.train(ops.cast(x, "float32")), x.dtype)
        params = self.params(x)
        y = fake_quantize(ops.cast(x, "float32"), params, self.spec)
        return on_grid(y, Grid(params, self.spec, group=self.group))

    def still(self, x):
        """Rounds `x` as a training step does, with its gradients, and moves no range."""
        if not self.calibrated:
            return x
        return ops.cast(self.train(ops.cast(x, "float32")), x.dtype)

    @property
    def clamps(self) -> bool:
        """Whether a training step computes the activation in front of the quantizer, too."""
        return False

    def idle(self, x, training):
        """Returns `x`; in training, such that what the quantizer learns gets a gradient of zero.

        Keras warns of variables without a gradient, and its optimizers want to know them all from
        the beginning.
        """
        if not (training and self.trainable_variables):
            return x
        total = sum(ops.sum(variable.value) for variable in self.trainable_variables)
        return x + ops.cast(total * 0.0, x.dtype)

    def train(self, x):
        """Rounds `x`, float32, in a training step.

        The default passes gradients straight through and leaves the grid as it is; a quantizer
        that learns its grid overrides it.
        """
        return fake_quantize(x, self.params(x), self.spec)

    def get_config(self):
        return {**super().get_config(), "spec": self.spec.to_dict()}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        return cls(spec=QuantSpec.from_dict(config.pop("spec")), **config)


class RecordingScope(Scope):
    """Inside it, activation quantizers let values through and note them.

    Calibration and reports run a model in this scope to see what the float model computes at each
    quantization point. It acts while Python traces or runs the model, like `keras.StatelessScope`.

    Args:
        quantize_weights: Whether weights are quantized all the same.
        see: Function of a quantizer and of a tensor that is told of each at once; `None` to keep
            them.

    Attributes:
        records: List of `(quantizer, tensor)` in the order of execution; a layer that is called
            twice has two quantizers, one for each call.
    """

    kind = "recording"

    def __init__(self, quantize_weights: bool = True, see=None):
        self.quantize_weights = quantize_weights
        self.records = []
        self._see = see or (lambda *record: self.records.append(record))

    def record(self, quantizer, x):
        """Notes `x` and returns it."""
        self._see(quantizer, x)
        return x


class RealScope(RecordingScope):
    """Inside it, activations are rounded in one kernel, and layers compute in real arithmetic.

    What a model computes in it is what the device computes, but for single steps, in a fraction of
    the time: enough to weigh one setting against another.
    """

    def record(self, quantizer, x):
        """Returns `x` on the grid, of which the next layer is told nothing."""
        params = quantizer.numbers()
        return (
            x
            if params is None
            else fake_quantize_at_once(ops.cast(x, "float32"), params, quantizer.spec)
        )
