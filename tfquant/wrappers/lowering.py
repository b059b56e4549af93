"""What a quantized layer becomes on its way to a file."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfquant.numerics import QuantSpec


@dataclasses.dataclass(frozen=True, eq=False)
class LoweredKernel:
    """A weight of a lowered layer, whose values lie on a grid.

    Attributes:
        values: Float32 values, `q * scale`, as the lowered layer holds them.
        scale: Float32 step, one for each output channel or one in all, flat; those of groups as
            `[groups, channels]`; `None` for values in half precision.
        spec: `QuantSpec`; `None` for values in half precision.
    """

    values: np.ndarray
    scale: np.ndarray | None = None
    spec: QuantSpec | None = None

    @property
    def group_size(self) -> int:
        """Number of values that share a step along the inputs; 0 without groups."""
        return getattr(self.spec and self.spec.granularity, "group_size", 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Lowering:
    """A layer in float arithmetic whose weights lie on the integer grid.

    Attributes:
        outputs: Structure of KerasTensors: what the float layers return.
        kernels: Its quantized weights.
        dynamic: Whether the device quantizes the layer's input when it runs.
        bias: Integers of its bias, whose step is that of the input times the kernel's, flat
            float64; real numbers where the input has no step; `None` without integer weights.
    """

    outputs: object
    kernels: tuple[LoweredKernel, ...] = ()
    dynamic: bool = False
    bias: np.ndarray | None = None


class Barrier(keras.layers.Layer):
    """Returns its input, by an operator that no converter draws into its neighbours.

    Converters move the bias of one kernel through the next, or a product into the kernel before
    it. The tensor between them, whose range was calibrated, is gone then. Who converts takes the
    operator out of the file again.
    """

    LIMIT = 3.0e38

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        """Returns `min(x, LIMIT)`."""
        return tf.minimum(x, self.LIMIT)

    def compute_output_spec(self, x):
        """Returns a KerasTensor like `x`."""
        return keras.KerasTensor(x.shape, x.dtype)
