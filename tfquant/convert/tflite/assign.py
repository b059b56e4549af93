"""Parameters for every tensor of the file."""

import dataclasses

import numpy as np
from keras import tree

from tfquant.convert.tflite import rules
from tfquant.convert.tflite.flatbuffer import File, Op
from tfquant.numerics import QuantSpec, choose_params
from tfquant.registry.linear import LinearConfig
from tfquant.rewrite.lower import Lowered, LoweredUnit, Point
from tfquant.wrappers import Quantize

# Why operators are float under a scheme of float activations.
AS_THE_SCHEME_SAYS = "the scheme keeps activations float"

# What ai-edge-quantizer calls the reader of a model's output.
GRAPH = -1

# A weight that is off its grid by more than this part of a step was not what we wrote.
OFF_GRID = 0.01


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


@dataclasses.dataclass
class Assignment:
    """Parameters of tensors, and what could not be computed in integers.

    Attributes:
        computed: Dict from index of a computed tensor to `TensorParams`.
        stored: Dict from `(operator index, tensor index)` to `TensorParams` of a stored tensor.
        requantized: Dict from `(operator index, tensor index)` to the `TensorParams` that the
            operator (or `GRAPH`, the reader of outputs) reads a computed tensor with, where they
            are not the tensor's own.
        integer: Indices of operators that run in integers.
        float_reasons: Dict from index of an operator that stays float to why.
        units: Dict from index of an operator with a kernel to its `LoweredUnit`.
    """

    computed: dict[int, TensorParams]
    stored: dict[tuple[int, int], TensorParams]
    requantized: dict[tuple[int, int], TensorParams]
    integer: set[int]
    float_reasons: dict[int, str]
    units: dict[int, LoweredUnit]


def assign(
    file: File,
    anchors: dict[int, list[Point]],
    rounded_again: dict[int, list[Point]],
    lowered: Lowered,
) -> Assignment:
    """Gives every tensor of the float file its parameters.

    Anchored tensors have those of their points. From there grids spread through operators that
    keep them; an operator whose inputs and outputs all have a grid runs in integers.

    Args:
        file: The float file.
        anchors: From `anchor`.
        rounded_again: From `anchor`.
        lowered: From `tfquant.rewrite.lower`.

    Returns:
        `Assignment`.

    Raises:
        RuntimeError: If a stored kernel is not on the grid that the model says it is on.
    """
    unit_of = {id(x): unit for unit in lowered.units for x in unit.outputs}
    computed = {
        index: _from_grid(points[0].grid) for index, points in anchors.items() if points[0].grid
    }
    _spread(file, computed)
    result = Assignment(computed, {}, {}, set(), {}, {})
    by_kernel = _kernels(file, anchors, lowered, unit_of)
    others = _other_weights(file, lowered)
    for op in file.ops:
        unit, kernel = by_kernel.get(op.index, (None, None))
        if unit is not None:
            result.units[op.index] = unit
        reason = _why_float(file, op, computed, kernel)
        if reason is None and _is_of_float_layer(op, anchors, unit_of):
            reason = "the layer is not quantized"
        if reason is None:
            result.integer.add(op.index)
            readers = [unit_of.get(id(p.tensor)) for i in op.outputs for p in anchors.get(i, ())]
            _read_again(op.index, op.inputs, readers, rounded_again, result)
            _requantize(file, op, result)
            _store_constants(file, op, kernel, others, result)
        else:
            result.float_reasons[op.index] = reason
            if kernel is not None:
                _store_weights_only(file, op, unit, kernel, result)
            else:
                _store_other_weights(file, op, others, result)
    ends = {id(x) for x in tree.flatten(lowered.model.output)}
    for index in file.outputs:
        again = [p for p in rounded_again.get(index, ()) if id(p.tensor) in ends]
        if again:
            result.requantized[GRAPH, index] = _from_grid(again[0].grid)
    return result


def _is_of_float_layer(op, anchors, unit_of):
    """Whether a layer that is not quantized computes what is only rounded behind it."""
    units = [unit_of.get(id(point.tensor)) for point in anchors.get(op.outputs[0], ())]
    return bool(units) and all(
        unit is not None and isinstance(unit.layer, Quantize) and unit.outputs[0] is unit.inputs[0]
        for unit in units
    )


def _read_again(reader, inputs, units, rounded_again, result):
    """Has an operator read its inputs on the grids on which its units do."""
    wanted = {id(x) for unit in units if unit is not None for x in unit.inputs}
    for index in inputs:
        for point in rounded_again.get(index, ()):
            if id(point.tensor) in wanted:
                result.requantized[reader, index] = _from_grid(point.grid)


def _requantize(file, op, result):
    """Has the inputs of an operator that keeps grids brought to the grid of its output."""
    if op.name not in rules.SAME_GRID or op.outputs[0] not in result.computed:
        return
    wanted = result.computed[op.outputs[0]]
    for index in op.inputs:
        params = result.requantized.get((op.index, index), result.computed.get(index))
        if params is not None and (
            params.num_bits != wanted.num_bits
            or params.scale[0] != wanted.scale[0]
            or params.zero_point[0] != wanted.zero_point[0]
        ):
            result.requantized[op.index, index] = wanted


def _from_grid(grid) -> TensorParams:
    return TensorParams(
        grid.spec.stored_bits,
        np.asarray([grid.params.scale], np.float32).reshape(1),
        np.asarray([grid.params.zero_point], np.int64),
    )


def _spread(file, computed):
    """Gives tensors without a point the grid that the operators around them dictate."""
    changed = True
    while changed:
        changed = False
        for op in file.ops:
            data = [i for i in op.inputs if _is_float_data(file, i)]
            known = [i for i in data if i in computed]
            if op.name in rules.SAME_GRID:
                # A float input keeps the operator float: it has no grid to be brought to.
                ends = known if len(known) == len(data) else []
                ends = [*ends, *(i for i in op.outputs if i in computed)]
                for index in [*data, *op.outputs] if ends else []:
                    if index not in computed and file.type(index) == "FLOAT32":
                        computed[index] = computed[ends[0]]
                        changed = True
            elif op.name in rules.CLAMPS and not known and op.outputs[0] in computed:
                computed[op.inputs[0]] = computed[op.outputs[0]]
                changed = True
            elif op.name in rules.FIXED_RANGE and known and op.outputs[0] not in computed:
                num_bits = computed[known[0]].num_bits
                if num_bits == 8 or op.name not in rules.ONLY_8_BITS:
                    computed[op.outputs[0]] = _fixed(op.name, num_bits)
                    changed = True


def _fixed(name, num_bits):
    low, high = rules.FIXED_RANGE[name]
    if num_bits > 8:
        return TensorParams(num_bits, np.array([2.0**-15], np.float32), np.zeros(1, np.int64))
    scale = (high - low) / 2.0**num_bits
    zero_point = min(-(2 ** (num_bits - 1)) - round(low / scale), 2 ** (num_bits - 1) - 1)
    return TensorParams(num_bits, np.array([scale], np.float32), np.array([zero_point]))


def _is_float_data(file, index):
    return file.type(index) == "FLOAT32" and not file.is_constant(index)


def _kernels(file, anchors, lowered, unit_of):
    """Finds the unit behind each operator that has a kernel.

    The kernel's values tell, in whatever layout the operator stores them.
    """
    found = {}
    kernels = [(unit, kernel) for unit in lowered.units for kernel in unit.kernels]
    for op in file.ops:
        if op.name not in rules.KERNELS or not file.is_constant(kernel_inputs(op)[1]):
            continue
        of_output = {unit_of.get(id(point.tensor)) for point in anchors.get(op.outputs[0], ())}
        stored = np.sort(file.constant(kernel_inputs(op)[1]), axis=None)
        # The operator's own unit first: two layers may hold the same values.
        ordered = sorted(kernels, key=lambda pair: pair[0] not in of_output)
        match = next((pair for pair in ordered if _same_values(pair[1].values, stored)), None)
        if match is not None:
            found[op.index] = match
    return found


def _other_weights(file, lowered):
    """Finds the quantized weights that are no kernel of an operator that multiplies by one.

    Returns:
        Dict from tensor index to `LoweredKernel`.
    """
    kernels = [
        kernel
        for unit in lowered.units
        if not isinstance(getattr(unit.layer, "quantize_config", None), LinearConfig)
        for kernel in unit.kernels
    ]
    found = {}
    for index in {i for op in file.ops for i in op.inputs} if kernels else ():
        if file.type(index) != "FLOAT32" or not file.is_constant(index):
            continue
        stored = np.sort(file.constant(index), axis=None)
        match = next((k for k in kernels if _same_values(k.values, stored)), None)
        if match is not None:
            found[index] = match
    return found


def _store_other_weights(file, op, others, result):
    """Stores weights that a float operator reads in few bits, where they lie on a grid."""
    for index in op.inputs:
        kernel = others.get(index)
        if kernel is None:
            continue
        if kernel.spec is None:
            data = file.constant(index).astype(np.float16)
            result.stored[op.index, index] = TensorParams(
                16, None, None, data=data, dequantize=True
            )
            continue
        axes = [None] if len(kernel.scale) == 1 else range(file.constant(index).ndim)
        found = (_on_grid(file.constant(index), kernel, axis) for axis in axes)
        params = next((p for p in found if p is not None), None)
        if params is not None:
            result.stored[op.index, index] = params


def _on_grid(values, kernel, axis):
    """Returns the integers of `values` with a scale for each index of `axis`, if they are some."""
    shape = [1] * values.ndim
    if axis is not None:
        if values.shape[axis] != len(kernel.scale):
            return None
        shape[axis] = -1
    steps = values.astype(np.float64) / kernel.scale.astype(np.float64).reshape(shape)
    q = np.rint(steps)
    if np.abs(steps - q).max(initial=0.0) > OFF_GRID or np.abs(q).max(initial=0) > 127:
        return None
    zeros = np.zeros(len(kernel.scale), np.int64)
    return TensorParams(8, kernel.scale, zeros, axis, q.astype(np.int8), dequantize=True)


def _same_values(kernel, in_order):
    """Whether two kernels hold the same values in any layout."""
    if kernel.size != in_order.size:
        return False
    tolerance = 1e-6 * float(np.abs(in_order).max(initial=0.0))
    return bool(np.allclose(np.sort(kernel, axis=None), in_order, rtol=0, atol=tolerance))


def _why_float(file, op, computed, kernel):
    """Returns why an operator cannot run in integers, or `None` if it can."""
    data = [i for i in (*op.inputs, *op.outputs) if _is_float_data(file, i)]
    if not data:
        return None
    if not computed:
        return AS_THE_SCHEME_SAYS
    if op.name not in rules.INTEGER:
        return "LiteRT has no integer kernel that tfquant knows for it"
    missing = [file.name(i) for i in data if i not in computed]
    if missing:
        return f"the range of {_short(missing[0])} is not known"
    if op.name in rules.COMPARISONS and _compared(file, op, computed) is None:
        return "LiteRT compares integers of one grid only, and with constants within it"
    if op.name in rules.ONLY_8_BITS and any(computed[i].num_bits > 8 for i in data):
        return "tfquant knows a kernel of 8 bits for it only"
    if op.name in rules.KERNELS and (kernel is None or kernel.spec is None):
        return "its weights are not quantized"
    return None


def _compared(file, op, computed):
    """Returns the integers for the constants of a comparison: a dict from tensor index to params.

    Between two integers of the grid a constant becomes the one that divides all integers of the
    grid as the constant does.

        x > c,  x <= c:     the last that is <= c
        x < c,  x >= c:     the first that is >= c

    Returns:
        `None` if there are none, as for `x == c`, or LiteRT does not compare integers of this grid.
    """
    grids = [computed[i] for i in op.inputs if _is_float_data(file, i)]
    first, (low, high) = grids[0], rules.COMPARED_STEPS
    scale, zero_point = first.scale[0], first.zero_point[0]
    same = all(g.scale[0] == scale and g.zero_point[0] == zero_point for g in grids)
    if not same or first.num_bits != 8 or not low <= scale < high:
        return None
    real = (np.arange(-128, 128) - zero_point).astype(np.float32) * scale
    found = {}
    for position, index in enumerate(op.inputs):
        if _is_float_data(file, index):
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


def _short(name):
    return name.split(";")[0]


def kernel_inputs(op: Op) -> tuple[int, int, int | None]:
    """Returns the indices of an operator's data, weights and (or `None`) bias tensors."""
    data, weights, bias = rules.KERNEL_INPUTS.get(op.name, rules.DEFAULT_KERNEL_INPUTS)
    return op.inputs[data], op.inputs[weights], op.inputs[bias] if len(op.inputs) > bias else None


def _store_constants(file, op, kernel, others, result):
    if op.name in rules.COMPARISONS and any(_is_float_data(file, i) for i in op.inputs):
        constants = _compared(file, op, result.computed)
        result.stored.update({(op.index, index): params for index, params in constants.items()})
        return
    if op.name not in rules.KERNELS:
        for index in op.inputs:
            if file.type(index) == "FLOAT32" and file.is_constant(index):
                weight = others.get(index)
                params = None
                if weight is not None and weight.spec is not None and len(weight.scale) == 1:
                    params = _on_grid(file.constant(index), weight, None)
                if params is None:
                    params = _constant(file, op, index, result)
                result.stored[op.index, index] = dataclasses.replace(params, dequantize=False)
        return
    x, weights, bias = kernel_inputs(op)
    result.stored[op.index, weights] = _weights(file, op, weights, kernel)
    if bias is not None:
        params = result.requantized.get((op.index, x), result.computed[x])
        scale = params.scale.astype(np.float64) * kernel.scale.astype(np.float64)
        info = np.iinfo(np.int32 if params.num_bits <= 8 else np.int64)
        # The last float64 below 2**63 is 1024 less.
        limit = float(info.max) if info.bits == 32 else 2.0**63 - 1024
        integers = np.clip(np.rint(file.constant(bias) / scale), -limit, limit)
        zeros = np.zeros(len(scale), np.int64)
        result.stored[op.index, bias] = TensorParams(
            info.bits, scale.astype(np.float32), zeros, 0, integers.astype(info.dtype)
        )


def _weights(file, op, index, kernel, dequantize=False):
    """Recovers the integers of a stored kernel from its values, which lie on the grid."""
    values, axis = file.constant(index), rules.KERNELS[op.name]
    scale, spec, group_size = kernel.scale, kernel.spec, kernel.group_size
    if group_size:  # Of FULLY_CONNECTED alone, whose weights are `[outputs, inputs]`.
        scale, axis = np.ascontiguousarray(scale.T), 1
        spread = np.repeat(scale, group_size, axis=1)
    elif len(scale) > 1:
        scale = _scale_along(scale, values.shape[axis])
        spread = scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    else:
        spread, axis = scale[0], None
    q = np.rint(values.astype(np.float64) / spread.astype(np.float64))
    off = np.abs(values - q * spread) / spread
    if off.max(initial=0.0) > OFF_GRID or np.abs(q).max(initial=0) > max(spec.qmax, -spec.qmin):
        raise RuntimeError(
            f"The converter changed weights of {op.name} '{file.name(index)}': they are off their "
            f"grid by {off.max():.3g} of a step. Please report the model."
        )
    return TensorParams(
        4 if spec.num_bits <= 4 else 8,  # The widths that the file stores.
        scale,
        np.zeros(scale.shape, np.int64),
        axis,
        q.astype(np.int8),
        dequantize=dequantize,
        group_size=group_size,
    )


def _scale_along(scale, channels):
    """Returns the scale of each channel of the operator.

    A kernel `(dim, heads, size)` with a scale for each of `size` is stored as a matrix that numbers
    `heads * size` channels.
    """
    return np.tile(scale, channels // len(scale))


def _constant(file, op, index, result):
    """Quantizes a constant operand: on the operator's grid where it must, else on its own."""
    values = file.constant(index)
    num_bits = next(result.computed[i].num_bits for i in op.outputs if i in result.computed)
    if op.name in rules.SAME_GRID:
        params = result.computed[op.outputs[0]]
        scale, zero_point = params.scale[0], params.zero_point[0]
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


def _store_weights_only(file, op, unit, kernel, result):
    """Stores the kernel of a float operator in few bits."""
    _, weights, _ = kernel_inputs(op)
    if kernel.spec is None:
        data = file.constant(weights).astype(np.float16)
        params = TensorParams(16, None, None, data=data, dequantize=True)
    else:
        params = _weights(file, op, weights, kernel, dequantize=not unit.dynamic)
    result.stored[op.index, weights] = params
