"""A grid that stands still: calibration sets it, inference reads it."""

import keras
import numpy as np
import tensorflow as tf

from tfquant.numerics import QuantParams, fake_quantize_at_once
from tfquant.quantizers.base import Quantizer
from tfquant.quantizers.families import ACTIVATION_QUANTIZERS, family


@family(ACTIVATION_QUANTIZERS, "static")
@keras.saving.register_keras_serializable(package="tfquant")
class Static(Quantizer):
    """Per-tensor grid of an activation, held in two variables.

    Until `set_params` was called (by calibration, or by loading a calibrated model) values pass
    through unchanged.

    Args:
        spec: `QuantSpec`, per tensor.
        group: Name shared by quantizers that must agree, or `None`. Calibration gives the members
            of a group one common range: the device concatenates only tensors of one scale.
    """

    def __init__(self, spec, group: str | None = None, **kwargs):
        super().__init__(spec, **kwargs)
        self.group = group

    def build(self, input_shape=None):
        """Creates `scale`, zero as long as nobody set it, and `zero_point`."""
        del input_shape
        self.scale, self.zero_point = self._variable("scale"), self._variable("zero_point")
        self.built = True

    def _variable(self, name, shape=()):
        # All replicas assign the same value.
        settings = {"trainable": False, "aggregation": "only_first_replica"}
        return self.add_number(name, shape=shape, **settings)

    @property
    def calibrated(self) -> bool:
        with tf.init_scope():  # Also while a graph is traced: the answer shapes the graph.
            return self.active and bool(self.scale.numpy() > 0)

    def params(self, x=None) -> QuantParams:
        """Returns scalars `scale` and `zero_point`."""
        del x
        return QuantParams(self.scale.value, self.zero_point.value)

    def set_params(self, params: QuantParams) -> None:
        """Sets the grid.

        Args:
            params: `QuantParams` of two numbers.

        Raises:
            ValueError: If the scale is not positive and finite.
        """
        scale = float(params.scale)
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"`scale` must be positive and finite. Received: scale={scale}.")
        self.scale.assign(scale)
        self.zero_point.assign(float(params.zero_point))

    def train(self, x):
        """Rounds `x` to the grid; gradients pass straight through inside its range."""
        return fake_quantize_at_once(x, self.params(), self.spec)

    def get_config(self):
        return {**super().get_config(), "group": self.group}
