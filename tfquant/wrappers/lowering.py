"""What a quantized layer becomes on its way to a file."""

import dataclasses

import numpy as np

from tfquant.numerics import QuantSpec


@dataclasses.dataclass(frozen=True)
class IntegerWeights:
    """The integers of a kernel and bias, in the layout of the Keras layer.

    Attributes:
        kernel: Integers, an array of the shape of the lowered layer's kernel.
        scale: Float32 step of the kernel, one for each output channel, flat.
        bias: Integers of step `input scale * scale`, one for each output channel, flat; `None`
            where the file keeps a float bias.
        spec: `QuantSpec` of the kernel.
    """

    kernel: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    spec: QuantSpec


@dataclasses.dataclass(frozen=True)
class Lowering:
    """A layer in float arithmetic whose weights lie on the integer grid.

    Attributes:
        outputs: Structure of KerasTensors: what the float layers return.
        kernel: Values of the lowered layer's kernel, or `None` for a layer without one.
        weights: `IntegerWeights`, or `None` for a layer without a quantized kernel.
        float16: Whether the weights are to be stored in half precision.
        dynamic: Whether the kernel quantizes its input when it runs.
    """

    outputs: object
    kernel: np.ndarray | None = None
    weights: IntegerWeights | None = None
    float16: bool = False
    dynamic: bool = False
