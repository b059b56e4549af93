"""`Quantize`: a quantization point of its own, at a model's input or where branches meet."""

import keras
import tensorflow as tf
from keras import ops

from tfquant import devices
from tfquant.quantizers import (
    Grid,
    RealScope,
    RecordingScope,
    Static,
    grid_of,
    round_to,
    steps_of,
)
from tfquant.wrappers.norms import as_pairs
from tfquant.wrappers.straight_through import straight_through


@keras.saving.register_keras_serializable(package="tfquant")
class Quantize(keras.layers.Layer):
    """Rounds its input to one grid.

    Called on several tensors, it gives them all the same grid.

    Args:
        quantizer: `Static`.
        device: Name of the device that inference simulates; `None` for that of the processor at
            hand.
        norms: As of `QuantizeWrapper`: what it is in front of.
        behind_norm: Whether it is behind them instead, and rounds only what they compute in float.
        in_float: Whether they compute in float.
    """

    def __init__(
        self,
        quantizer: Static,
        device: str | None = None,
        norms=(),
        behind_norm: bool = False,
        in_float: bool = False,
        **kwargs,
    ):
        kwargs["dtype"] = "float32"  # The grid is, whatever policy the model around it has.
        super().__init__(autocast=False, **kwargs)
        self.quantizer, self.device = quantizer, devices.get(device)
        if not self.quantizer.built:
            self.quantizer.build(())
        self.norms, self.behind_norm, self.in_float = as_pairs(norms), behind_norm, in_float
        self.supports_masking = True
        self.built = True

    @property
    def quantizes(self) -> bool:
        """Whether it rounds: not in front of norms in float, nor behind norms in integers."""
        return not self.norms or self.in_float == self.behind_norm

    def call(self, x, training=None):
        """Returns `x` on the grid.

        In training, `x` must be finite: rounding would turn a NaN into a number, which the loss
        would not show. (XLA does not check.)
        """
        if not self.quantizes:
            scope = RecordingScope.current()
            if scope is not None and not isinstance(scope, RealScope):
                scope.record(self.quantizer, x)
            return x
        if training:
            check_ranges([self.quantizer], self.name)
            x = tf.debugging.check_numerics(x, f"Values of '{self.name}' must be finite")
        if training or RecordingScope.current() or not self.quantizer.calibrated:
            return self.quantizer.call(x, training=training)
        trained = self.quantizer.trainable_variables
        return straight_through(self._exact, self.quantizer.still, x, trained)[0]

    def _exact(self, x):
        """Requantizes what lies on a grid, and quantizes what does not."""
        grid = grid_of(x)
        if grid is None:
            return self.quantizer.call(x)
        output = Grid(self.quantizer.params(), self.quantizer.spec, group=self.quantizer.group)
        steps = self.device.compute("QUANTIZE", (grid._replace(steps=steps_of(x)),), output)
        return round_to(output, ops.cast(steps, "float32"))

    def compute_output_shape(self, input_shape):
        """Returns `input_shape`."""
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "quantizer": keras.saving.serialize_keras_object(self.quantizer),
            "device": self.device.name,
            "norms": self.norms,
            "behind_norm": self.behind_norm,
            "in_float": self.in_float,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["quantizer"] = keras.saving.deserialize_keras_object(config["quantizer"])
        config.pop("autocast", None)
        return cls(**config)


def check_ranges(quantizers, name):
    """Raises unless each grid of a layer was set before it is trained with.

    Raises:
        ValueError: If one was not.
    """
    for quantizer in quantizers:
        if quantizer is not None and quantizer.active and not quantizer.calibrated:
            raise ValueError(
                f"The range of '{name}' was never set, so there is nothing to train with. Call "
                "tfq.calibrate(model, data) once before training."
            )
