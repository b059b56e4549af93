"""Parameters of stored tensors: weights, biases, other constants."""

import dataclasses

import numpy as np

from tfquant.litert import rules
from tfquant.litert.flatbuffer import File, Op, kernel_inputs
from tfquant.numerics import QuantSpec, choose_params
from tfquant.quantizers import grid_of
from tfquant.skeleton.codes import Stored


@dataclasses.dataclass(frozen=True, eq=False)
class TensorParams:
    """What a tensor of the file becomes.

    Attributes:
        num_bits: Width; 16 with `scale` `None` means half-precision floats.
        scale: Float32 array, one for each channel or one in all; `[channels, groups]` with groups.
        zero_point: Integers of the same shape.
        axis: Axis that numbers the channels, or that is cut into groups, or `None`.
        data: Integers (or half-precision floats) of a stored tensor.
        dequantize: Whether the file turns a stored tensor back to float before it is read.
        group_size: Values along `axis` that share a scale; 0 without groups.
    """

    num_bits: int
    scale: np.ndarray | None
    zero_point: np.ndarray | None
    axis: int | None = None
    data: np.ndarray | None = None
    dequantize: bool = False
    group_size: int = 0


def kernel_constants(file: File, op: Op, stored: Stored, x: TensorParams) -> dict:
    """Returns what the weights and the bias of an operator become that multiplies integers.

    Args:
        file: The float file.
        op: The operator.
        stored: Its weights.
        x: Parameters that it reads its input with.

    Returns:
        Dict from tensor index to `TensorParams`.
    """
    _, weights, bias = kernel_inputs(op)
    found = {weights: weight(stored)}
    if bias is not None:
        found[bias] = _bias(file.constant(bias), stored, x)
    return found


def weight(stored: Stored, dequantize: bool = False) -> TensorParams:
    """Returns what a quantized weight becomes.

    Args:
        stored: The weight.
        dequantize: Whether the file turns it back to float before it is read.
    """
    kernel = stored.kernel
    if kernel.spec is None:
        data = stored.values().astype(np.float16)
        return TensorParams(16, None, None, data=data, dequantize=True)
    scale, axis = stored.scales()
    # The widths that the file stores; narrow ones have no DEQUANTIZE for each channel of any axis.
    narrow = kernel.spec.num_bits <= 4 and bool(kernel.channel_axes)
    bits = kernel.spec.stored_bits  # Integers of 16 bits may all fit into 8.
    return TensorParams(
        4 if narrow else bits,
        scale,
        np.zeros(scale.shape, np.int64),
        axis,
        stored.laid_out(kernel.integers.astype(f"int{bits}")),
        dequantize=dequantize,
        group_size=kernel.group_size,
    )


def _bias(values, stored, x):
    """Returns the integers of a bias.

    Those of the model, if the file holds what it was lowered to; else the nearest to what it holds.
    """
    scale, _ = stored.scales()
    steps = x.scale.astype(np.float64) * scale.astype(np.float64)
    integers = _given_bias(stored, x, values)
    if integers is None:
        integers = np.rint(values / steps)
    info = np.iinfo(np.int32 if x.num_bits <= 8 else np.int64)
    # The last float64 below 2**63 is 1024 less.
    limit = float(info.max) if info.bits == 32 else 2.0**63 - 1024
    integers = np.clip(integers, -limit, limit)
    zeros = np.zeros(len(steps), np.int64)
    data = integers.astype(info.dtype)
    return TensorParams(info.bits, steps.astype(np.float32), zeros, 0, data)


def _given_bias(stored, x, values):
    """Returns the model's own integers of a bias; `None` where they are not those of `values`."""
    unit = stored.unit
    grid = grid_of(unit.inputs[0])
    if unit.bias is None or grid is None or grid.params.scale != x.scale[0]:
        return None
    real = unit.bias * (float(grid.params.scale) * stored.kernel.scale)
    return unit.bias if np.array_equal(real.astype(np.float32), values) else None


def constant(values: np.ndarray, num_bits: int, output: TensorParams | None) -> TensorParams:
    """Quantizes a constant operand: on the operator's grid where it must, else on its own.

    No integer is NaN. What stands for it, as where values that are none are replaced, is never
    chosen by integers, and becomes 0.

    Args:
        values: Its values.
        num_bits: Width of its integers.
        output: Parameters of the output of an operator that moves values, else `None`.
    """
    values = np.where(np.isnan(values), np.float32(0), values)
    if output is not None:
        scale, zero_point = output.scale[0], output.zero_point[0]
    else:
        spec = QuantSpec(num_bits, symmetric=num_bits > 8)
        scale, zero_point = choose_params(values.min(), values.max(), spec)
    info = np.iinfo(f"int{num_bits}")
    q = np.clip(np.rint(values / scale) + zero_point, info.min, info.max)
    return TensorParams(
        num_bits,
        np.array([scale], np.float32),
        np.array([zero_point], np.int64),
        data=q.astype(info.dtype),
    )


def compared(file: File, op: Op, computed: dict) -> dict[int, TensorParams] | None:
    """Returns what the constants of a comparison become.

    Between two integers of the grid a constant becomes the one that divides all integers of the
    grid as the constant does.

        x > c,  x <= c:     the last that is <= c
        x < c,  x >= c:     the first that is >= c

    Returns:
        `None` if there are none, as for `x == c`, or LiteRT does not compare integers of this grid.
    """
    grids = [computed[i] for i in op.inputs if file.is_float_data(i)]
    first, (low, high) = grids[0], rules.COMPARED_STEPS
    scale, zero_point = first.scale[0], first.zero_point[0]
    same = all(g.scale[0] == scale and g.zero_point[0] == zero_point for g in grids)
    if not same or first.num_bits != 8 or not low <= scale < high:
        return None
    real = (np.arange(-128, 128) - zero_point).astype(np.float32) * scale
    found = {}
    for position, index in enumerate(op.inputs):
        if file.is_float_data(index):
            continue
        name = op.name if position else rules.EXCHANGED.get(op.name, op.name)
        values = file.constant(index)
        last = name in ("GREATER", "LESS_EQUAL")
        place = np.searchsorted(real, values, "right" if last else "left") - last
        if place.min() < 0 or place.max() > 255:
            return None
        if name in ("EQUAL", "NOT_EQUAL") and (real[place] != values).any():
            return None
        data = np.asarray(place - 128, np.int8)
        found[index] = dataclasses.replace(first, data=data)
    return found
