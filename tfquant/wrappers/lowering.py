"""What a quantized layer becomes on its way to a file."""

import dataclasses

import keras
import numpy as np

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


def clamp_layer(x, bounds):
    """Applies the clamp `bounds`, `(low, high)` or `None`, as a layer that converters fuse."""
    if bounds is None:
        return x
    return keras.layers.ReLU(max_value=bounds[1])(x)
