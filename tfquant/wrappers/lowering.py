"""What a quantized layer becomes on its way to a file."""

import dataclasses

import keras
import numpy as np

from tfquant.numerics import QuantSpec


@dataclasses.dataclass(frozen=True, eq=False)
class LoweredKernel:
    """A weight of a lowered layer, whose values lie on a grid.

    Attributes:
        variable: The variable of the lowered layer that holds it, as float32 `integers * scale`.
        integers: Integers in the variable's shape; `None` for values in half precision.
        scale: Float32 step, one for each output channel or one in all, flat; those of groups as
            `[groups, channels]`; `None` for values in half precision.
        spec: `QuantSpec`; `None` for values in half precision.
        channel_axes: Axes that number the output channels of the operator that multiplies by it;
            empty where nobody knows what reads it.
    """

    variable: keras.Variable
    integers: np.ndarray | None = None
    scale: np.ndarray | None = None
    spec: QuantSpec | None = None
    channel_axes: tuple[int, ...] = ()

    @property
    def group_size(self) -> int:
        """Number of values that share a step along the inputs; 0 without groups."""
        return getattr(self.spec and self.spec.granularity, "group_size", 0)


def as_integers(q: np.ndarray) -> np.ndarray:
    """Returns the numbers `q`, which are integers, in the smallest type that holds them."""
    largest = np.abs(q).max(initial=0)
    return q.astype(np.int8 if largest <= 127 else np.int16)


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


def clamp_layer(x, bounds, behind: str):
    """Applies the clamp `bounds`, `(low, high)` or `None`, as a layer that converters fuse.

    Args:
        x: Tensor.
        bounds: The clamp.
        behind: Name of the layer that it is a part of. Keras's own names count up, and would give
            the same model another file each time.
    """
    if bounds is None:
        return x
    return keras.layers.ReLU(max_value=bounds[1], name=f"{behind}__clamp")(x)
