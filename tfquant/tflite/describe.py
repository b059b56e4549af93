"""What the report says of each layer and of each float operator."""

import dataclasses

from tfquant import devices
from tfquant.configs.linear import LinearConfig, unit_product
from tfquant.devices.device import EXACT
from tfquant.litert.flatbuffer import File
from tfquant.numerics import QuantSpec
from tfquant.quantizers import grid_of
from tfquant.report import ROUNDED, FloatOperator, LayerReport, TensorReport
from tfquant.report.weights import weight_fields
from tfquant.skeleton.anchor import MOVES
from tfquant.tflite.assign import AS_THE_SCHEME_SAYS, REFUSED, Assignment
from tfquant.wrappers import Quantize

# Why a function differs that the converter made several kernels of.
SEVERAL = "several kernels"

# Why a transposed convolution differs: XNNPACK leaves one of free size to another kernel.
FREE_SIZE = "free size"


def layer_reports(units, file: File, anchors, assignment: Assignment) -> list[LayerReport]:
    """Describes units, but for what a comparison tells of them.

    Args:
        units: `LoweredUnit`s.
        file: The float file.
        anchors: From `anchor`.
        assignment: From `assign`.
    """
    grids = _grids(anchors)
    refused = {n for n, reason in assignment.float_reasons.items() if reason.startswith(REFUSED)}
    found = []
    for unit in units:
        op = _operator(unit, file, anchors, assignment)
        report = _layer_report(unit, op, grids)
        if op and op.index in refused:
            report = dataclasses.replace(report, arithmetic="float")
        elif op and report.arithmetic == EXACT and _is_several(unit, op, file, anchors, assignment):
            report = dataclasses.replace(report, arithmetic=SEVERAL)
        elif op and report.arithmetic == EXACT and _is_rounded(unit, op, assignment):
            report = dataclasses.replace(report, arithmetic=ROUNDED)
        elif op and op.name == "TRANSPOSE_CONV" and not file.is_constant(op.inputs[0]):
            report = dataclasses.replace(report, arithmetic=FREE_SIZE)
        found.append(report)
    return found


def _is_rounded(unit, op, assignment):
    """Whether a function is computed in float, and lies on a grid behind it."""
    on_grid = grid_of(unit.outputs[0]) is not None
    return on_grid and op.index in assignment.float_reasons and op.name not in MOVES


def _is_several(unit, op, file, anchors, assignment):
    """Whether a function is several integer kernels, which round where the simulation does not."""
    config = getattr(unit.layer, "quantize_config", None)
    if config is None or isinstance(config, LinearConfig):
        return False
    device, waiting = unit.layer.device, [i for i in op.inputs if i not in anchors]
    if device.moves(op.name):  # Its inputs may be brought to a grid that is not theirs.
        return any(unit.output_quantizers)
    while waiting:
        before = file.producer(waiting.pop())
        if before is None:
            continue
        if before.index in assignment.integer and not device.moves(before.name):
            return True
        waiting += [i for i in before.inputs if i not in anchors]
    return False


def _grids(anchors):
    """Returns the grid of each anchored KerasTensor."""
    return {p.tensor: p.grid for points in anchors.values() for p in points}


def _layer_report(unit, op, grids):
    grid = grids.get(unit.outputs[0])
    name = op.name if op else ("QUANTIZE" if isinstance(unit.layer, Quantize) else "-")
    inputs = [read for read in map(grid_of, unit.inputs) if read is not None]
    bits = grid.spec.num_bits if grid else None
    if unit.dynamic:
        bits = unit.layer.quantize_config.input_quantizer(unit.layer).spec.num_bits
    return LayerReport(
        name=unit.name,
        operator=name,
        activation_bits=bits,
        arithmetic=unit.layer.device.arithmetic(
            name,
            grid and grid.spec.stored_bits,
            [float(read.params.scale) for read in inputs],
            float(grid.params.scale) if grid else None,
        ),
        **weight_fields(unit),
    )


def _operator(unit, file, anchors, assignment):
    """Returns the operator that computes a unit, `None` if it was computed away.

    A reshape behind it holds the same values; it is the unit's if nothing else is.
    """
    for index, of in assignment.units.items():
        if of is unit:
            return file.ops[index]
    own = [i for i, points in anchors.items() if points[0].tensor is unit.outputs[0]]
    found = [op for op in map(file.producer, own) if op is not None]
    return min(found, key=lambda op: op.name in MOVES, default=None)


def tensor_reports(file: File, indices, names) -> list[TensorReport]:
    """Describes inputs or outputs of a file, by their names in its signature."""
    found = []
    for index, name in zip(indices, names, strict=True):
        scale, free = file.scale(index), file.subgraph.tensors[index].shapeSignature
        shape = file.shape(index) if free is None else free
        grid = (float(scale[0]), int(file.zero_point(index)[0])) if scale.size else ()
        found.append(TensorReport(name, file.type(index), [int(n) for n in shape], *grid))
    return found


def float_operators(file: File, assignment: Assignment, lowered) -> list[FloatOperator]:
    """Describes the operators that compute in float."""
    operators = []
    for index, reason in assignment.float_reasons.items():
        op = file.ops[index]
        name = file.name(op.outputs[0]).split(";")[0]
        for layers, what in (
            (lowered.float_layers, "is not quantized"),
            (lowered.weights_only, "has only its weights quantized"),
        ):
            for layer, kind in layers.items():
                if f"/{layer}" in name and reason != AS_THE_SCHEME_SAYS:
                    reason = f"layer '{layer}' ({kind}) {what}"
        unit = assignment.units.get(index)
        if reason == AS_THE_SCHEME_SAYS and unit is not None and unit.dynamic:
            reason = "its inputs are quantized when the file runs, its outputs are float"
        for part, norm in lowered.norms.items():
            if f"/{part}" in name:
                reason = f"norm '{norm}' serves the outputs in float"
        operators.append(FloatOperator(name, op.name, reason))
    return operators


def elsewhere(lowered, file: File, anchors, assignment: Assignment) -> dict[str, list[str]]:
    """Returns what other devices compute otherwise: a dict from their names to operators."""
    found, grids = {}, _grids(anchors)
    others = [
        other
        for other in devices.DEVICES.values()
        if other is not lowered.device and other.runtime == "litert"
    ]
    for unit in lowered.units:
        op, grid = _operator(unit, file, anchors, assignment), grids.get(unit.outputs[0])
        if op is None or grid is None:
            continue
        for other, bits in _bits_that_differ(unit, op.name, grid.spec.stored_bits, others):
            found.setdefault(other.name, set()).add(f"INT{bits} {op.name}")
    return {name: sorted(operators) for name, operators in found.items()}


def _bits_that_differ(unit, name, num_bits, others):
    """Returns pairs of a device that computes `unit` otherwise and the width of its integers."""
    device, config = unit.layer.device, getattr(unit.layer, "quantize_config", None)
    if not isinstance(config, LinearConfig):
        first = grid_of(unit.inputs[0]) if unit.inputs else None
        scale = float(first.params.scale) if first else None
        differing = [other for other in others if device.differs(other, name, num_bits, scale)]
        return [(other, num_bits) for other in differing]
    if grid_of(unit.inputs[0]) is None or not isinstance(config.weights, QuantSpec):
        return []
    product = unit_product(unit)
    stored = 8 if product.weight_bits > 4 else 4  # Widths of the integers of a file.
    rounding = device.rounding(product)
    return [(other, stored) for other in others if other.rounding(product) != rounding]
