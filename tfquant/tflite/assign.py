"""Parameters for every tensor of the file."""

import dataclasses

import numpy as np

from tfquant.configs.elementwise import SameGridConfig
from tfquant.devices import fixed_grid
from tfquant.litert import rules
from tfquant.litert.flatbuffer import kernel_inputs
from tfquant.rewrite.lower import Lowered, LoweredUnit, Point
from tfquant.skeleton.float_file import FloatFile
from tfquant.tflite.stored import (
    TensorParams,
    compared,
    constant,
    kernel_constants,
    weight,
)
from tfquant.wrappers import Quantize

# Why operators are float under a scheme of float activations.
AS_THE_SCHEME_SAYS = "the scheme keeps activations float"

# How the reason begins of what LiteRT does not run in integers.
REFUSED = "LiteRT does not run it on these integers"

# What ai-edge-quantizer calls the reader of a model's output.
GRAPH = -1


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
    float_file: FloatFile,
    anchors: dict[int, list[Point]],
    rounded_again: dict[int, list[Point]],
    lowered: Lowered,
    refused: dict[str, str],
) -> Assignment:
    """Gives every tensor of the float file its parameters.

    Anchored tensors have those of their points. From there grids spread through operators that
    keep them; an operator whose inputs and outputs all have a grid runs in integers.

    Args:
        float_file: The float file.
        anchors: From `anchor`.
        rounded_again: From `anchor`.
        lowered: From `tfquant.rewrite.lower`.
        refused: Dict from the name of an operator's output to why LiteRT does not run the operator
            on these integers.

    Returns:
        `Assignment`.
    """
    file, device = float_file.file, lowered.device
    unit_of = {x: unit for unit in lowered.units for x in unit.outputs}
    computed = {
        index: _from_grid(points[0].grid) for index, points in anchors.items() if points[0].grid
    }
    _spread(file, computed, device)
    result = Assignment(computed, {}, {}, set(), {}, {})
    for op in file.ops:
        stored = {i: w for i in op.inputs if (w := float_file.weights.get((op.index, i)))}
        kernel = stored.get(kernel_inputs(op)[1]) if op.name in rules.KERNELS else None
        if kernel is not None:
            result.units[op.index] = kernel.unit
        reason = refused.get(file.name(op.outputs[0]))
        reason = reason or _why_float(file, op, computed, kernel, device)
        # Keras's Conv1D reshapes what it reads: a model's input has the grid on both sides.
        given = device.moves(op.name) and op.inputs[0] in file.inputs
        moves = given and _shares_grid(op, computed)
        if reason is None and not moves and _is_of_float_layer(op, anchors, unit_of):
            reason = "the layer is not quantized"
        if reason is None:
            readers = [unit_of.get(p.tensor) for i in op.outputs for p in anchors.get(i, ())]
            wanted = _read_by(readers, unit_of)
            _read_again(op.index, op.inputs, wanted, rounded_again, result)
            _requantize(op, result, device)
            reason = _why_not_together(file, op, result)
        if reason is None:
            result.integer.add(op.index)
            found = _constants(file, op, kernel, stored, result, device)
        else:
            result.float_reasons[op.index] = reason
            found = {i: weight(w, dequantize=not w.read_as_integers) for i, w in stored.items()}
        result.stored.update({(op.index, i): params for i, params in found.items()})
    ends = set(lowered.model.outputs)
    for index in file.outputs:
        again = [p for p in rounded_again.get(index, ()) if p.tensor in ends]
        if again:
            result.requantized[GRAPH, index] = _from_grid(again[0].grid)
    return result


def _shares_grid(op, computed):
    """Whether an operator reads integers of the grid that it writes."""
    ends = *op.inputs[:1], *op.outputs[:1]
    return all(i in computed for i in ends) and _agree(ends, computed)


def _is_of_float_layer(op, anchors, unit_of):
    """Whether a layer that is not quantized computes what is only rounded behind it."""
    units = [unit_of.get(point.tensor) for point in anchors.get(op.outputs[0], ())]
    return bool(units) and all(
        unit is not None and isinstance(unit.layer, Quantize) and unit.outputs[0] is unit.inputs[0]
        for unit in units
    )


def _read_by(units, unit_of):
    """Returns what units read, and what it was in front of moves, which the file may have not."""
    wanted, waiting = set(), [x for unit in units if unit is not None for x in unit.inputs]
    while waiting:
        x = waiting.pop()
        wanted.add(x)
        config = getattr(getattr(unit_of.get(x), "layer", None), "quantize_config", None)
        waiting += unit_of[x].inputs if isinstance(config, SameGridConfig) else []
    return wanted


def _read_again(reader, inputs, wanted, rounded_again, result):
    """Has an operator read its inputs on the grids on which its units do."""
    for index in inputs:
        for point in rounded_again.get(index, ()):
            if point.tensor in wanted:
                result.requantized[reader, index] = _from_grid(point.grid)


def _requantize(op, result, device):
    """Has the inputs of an operator that keeps grids brought to the grid of its output."""
    if not device.moves(op.name) or op.outputs[0] not in result.computed:
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


def _why_not_together(file, op, result):
    """Returns why no kernel reads and writes an operator's grids, or `None`.

    Two layers that are not quantized may stand between one width and another, and the converter
    knows of the last only.
    """
    grids = {i: result.computed[i] for i in (*op.inputs, *op.outputs) if file.is_float_data(i)}
    again = {i: result.requantized.get((op.index, i), grids[i]) for i in op.inputs if i in grids}
    widths = sorted({params.num_bits for params in (grids | again).values()})
    if len(widths) < 2:
        return None
    for index in op.inputs:
        result.requantized.pop((op.index, index), None)
    return f"it would read and write integers of {widths[0]} and {widths[-1]} bits"


def _from_grid(grid) -> TensorParams:
    return TensorParams(
        grid.spec.stored_bits,
        np.asarray([grid.params.scale], np.float32).reshape(1),
        np.asarray([grid.params.zero_point], np.int64),
    )


def _spread(file, computed, device):
    """Gives tensors without a point the grid that the operators around them dictate.

    In front of a clamp that is the grid behind it, whose ends do most of the clamping.
    """
    for op in reversed(file.ops):
        if _is_clamp(file, op) and op.outputs[0] in computed:
            computed.setdefault(_data(file, op), computed[op.outputs[0]])
    # Constants that are copied for each row go to any grid, as those do that are not.
    copies = {op.outputs[0] for op in file.ops if _copies_constant(file, op)}
    changed = True
    while changed:
        changed = False
        for op in file.ops:
            all_data = [i for i in op.inputs if file.is_float_data(i)]
            data = [i for i in all_data if i not in copies]
            known = [i for i in data if i in computed]
            if device.moves(op.name):
                # A float input keeps the operator float: it has no grid to be brought to.
                # Neither have several of different grids one that the simulation knows of.
                ends = known if len(known) == len(data) and _agree(known, computed) else []
                ends = [*ends, *(i for i in op.outputs if i in computed)]
                for index in [*all_data, *op.outputs] if ends else []:
                    if index not in computed and file.type(index) == "FLOAT32":
                        computed[index] = computed[ends[0]]
                        changed = True
            elif device.bounds(op.name) and known and op.outputs[0] not in computed:
                num_bits = computed[known[0]].num_bits
                if not device.why_not(op.name, num_bits):
                    computed[op.outputs[0]] = _fixed(device.bounds(op.name), num_bits)
                    changed = True


def _copies_constant(file, op):
    return op.name == "BROADCAST_TO" and file.is_constant(op.inputs[0])


def _agree(indices, computed):
    """Whether tensors lie on one grid."""
    grids = [computed[i] for i in indices]
    return len({(g.num_bits, float(g.scale[0]), int(g.zero_point[0])) for g in grids}) < 2


def _is_clamp(file, op):
    """Whether an operator bounds one tensor by numbers."""
    if op.name in rules.CLAMPS:
        return True
    return op.name in ("MAXIMUM", "MINIMUM") and len([*filter(file.is_float_data, op.inputs)]) == 1


def _data(file, op):
    return next(i for i in op.inputs if file.is_float_data(i))


def _fixed(bounds, num_bits):
    scale, zero_point = fixed_grid(bounds, num_bits)
    return TensorParams(num_bits, np.array([scale], np.float32), np.array([zero_point]))


def _why_float(file, op, computed, kernel, device):
    """Returns why an operator cannot run in integers, or `None` if it can."""
    data = [i for i in (*op.inputs, *op.outputs) if file.is_float_data(i)]
    if not data:
        return None
    if not computed:
        return AS_THE_SCHEME_SAYS
    if op.name not in device.operators:
        return f"{device.name} has no integer kernel that tfquant knows for it"
    missing = [file.name(i) for i in data if i not in computed]
    if missing:
        return f"the range of {_short(missing[0])} is not known"
    if op.name in rules.COMPARISONS and compared(file, op, computed) is None:
        return "LiteRT compares integers of one grid only, and with constants within it"
    widths = device.operators[op.name].num_bits
    if any(computed[i].num_bits not in widths for i in data):
        return "tfquant knows a kernel of 8 bits for it only"
    if op.name in rules.KERNELS and (kernel is None or kernel.kernel.spec is None):
        return "its weights are not quantized"
    if kernel is not None and kernel_inputs(op)[0] not in computed:
        return "what it multiplies is stored"
    return None


def _short(name):
    return name.split(";")[0]


def _constants(file, op, kernel, stored, result, device):
    """Returns what the constants of an operator in integers become, by tensor index."""
    constants = [i for i in op.inputs if file.type(i) == "FLOAT32" and file.is_constant(i)]
    if kernel is not None:
        x = kernel_inputs(op)[0]
        return kernel_constants(
            file, op, kernel, result.requantized.get((op.index, x), result.computed[x])
        )
    if op.name in rules.COMPARISONS and constants:
        return compared(file, op, result.computed)
    num_bits = next((result.computed[i].num_bits for i in op.outputs if i in result.computed), 8)
    found = {}
    for index in constants:
        output = result.computed.get(op.outputs[0]) if device.moves(op.name) else None
        params = weight(stored[index]) if index in stored and output is None else None
        if params is None or params.scale is None or len(params.scale) > 1:
            values = stored[index].values() if index in stored else file.constant(index)
            params = constant(values, num_bits, output)
        found[index] = params
    return found
