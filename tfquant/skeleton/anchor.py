"""Which tensor of the float file is which activation of the Keras model.

By structure: the name of a file's tensor lists the operations of the graph that it was made from,
and the last of them computes it. A point of the model is a tensor of the same graph. Operations
that leave values and their order alone (a reshape, a bias of zeros) make several tensors one.
"""

import math

import numpy as np
import tensorflow as tf

from tfquant.layers.parts import Constant
from tfquant.litert.flatbuffer import File
from tfquant.quantizers import grid_of
from tfquant.rewrite.lower import Lowered, Point
from tfquant.skeleton.float_file import FloatFile, is_limit
from tfquant.wrappers import Quantize

# Operations of a graph that return the values of an input in their order: which input.
_SAME_VALUES = dict.fromkeys(
    ("ExpandDims", "Identity", "IdentityN", "Reshape", "Squeeze", "StopGradient"), 0
)

# Those that do where they return as many values as they read.
_SAME_VALUES_IF_AS_MANY = {
    **dict.fromkeys(("ConcatV2", "Max", "Mean", "Min", "Pack", "Pad", "PadV2", "Prod"), 0),
    **dict.fromkeys(("Slice", "SplitV", "Sum", "Tile", "Unpack"), 0),
    "Split": 1,
}

# Operations whose outputs differ from those of another of the same settings.
_DRAWN = frozenset({"Placeholder", "RandomUniform", "RandomStandardNormal", "VarHandleOp"})

# Operations of two operands: what the second is where they return the first.
_NEUTRAL = {
    **dict.fromkeys(("Add", "AddV2", "BiasAdd", "Sub"), 0.0),
    **dict.fromkeys(("Mul", "RealDiv"), 1.0),
}

# Those that constants are computed with.
_ARITHMETIC = {"AddV2": np.add, "Mul": np.multiply, "RealDiv": np.divide, "Sub": np.subtract}

# Operations that a converter computes in another order of axes.
_ELEMENTWISE = frozenset({"Add", "AddV2", "Maximum", "Minimum", "Mul", "RealDiv", "Sub"})

# Operations that call a function, whose own are named behind them.
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})

# Operators of a file that return the values of their first input in their order.
MOVES = frozenset({"EXPAND_DIMS", "RESHAPE", "SQUEEZE"})

# Those that may, and those that do beside a constant of such values.
_MAY_MOVE = MOVES | {"CONCATENATION", "MEAN", "PACK", "PAD", "PADV2", "REDUCE_MAX", "REDUCE_MIN"}
_MAY_MOVE |= {"REDUCE_PROD", "SLICE", "SPLIT", "SPLIT_V", "STRIDED_SLICE", "SUM", "TILE"}
_MAY_MOVE |= {"TRANSPOSE", "UNPACK"}
_NEUTRAL_BESIDE = {"ADD": 0.0, "DIV": 1.0, "MUL": 1.0, "SUB": 0.0}


def anchor(
    float_file: FloatFile, lowered: Lowered
) -> tuple[dict[int, list[Point]], dict[int, list[Point]], list[str]]:
    """Finds the tensors of each point.

    Args:
        float_file: The float file.
        lowered: From `tfquant.rewrite.lower`.

    Returns:
        `(anchors, rounded_again, lost)`. Of the first, dict from tensor index to its points, all of
        one grid. A tensor may have several (before and behind a flatten that was computed away),
        and a point several tensors (before and behind a reshape), or none. Of the second, likewise,
        the points of other grids: those that `Quantize` layers bring the tensor to, and what was
        computed away behind them. The last, names of layers whose output has a grid and no tensor.
    """
    file = float_file.file
    again = _rounded_again(lowered)
    anchors, rounded_again = {}, {}
    found = _found(float_file, lowered.points)
    for index, (points, own) in found.items():
        own = [p for p in own or points if p.tensor not in again] or own or points
        op = file.producer(index)
        moves = op is not None and lowered.device.moves(op.name)
        key = _key(own[-1 if moves else 0])
        anchors[index] = [p for p in own if _key(p) == key]
        others = [p for p in points if p.grid is not None and _key(p) != key]
        if others:
            rounded_again[index] = others
    found = {point.tensor for points, _ in found.values() for point in points}
    return anchors, rounded_again, _lost(found, lowered)


def layer_names(file: File, anchors: dict[int, list[Point]]) -> dict[str, str]:
    """Returns the layer behind each name of an anchored tensor, as it may be called in the file.

    Args:
        file: The float file.
        anchors: From `anchor`.
    """
    found = {}
    for index, points in anchors.items():
        name = file.name(index).split(";")[0]
        for suffix in ("", "_quantized", "_dequant"):  # ai-edge-quantizer's.
            found[name + suffix] = points[0].name
    return found


def _found(float_file, points):
    """Returns for each tensor of the file its points in their order, and which are in front of it.

    The others are behind it: the converter computed away what leads to them.
    """
    graph = float_file.graph
    numbers = _number(graph.operations)
    by_number: dict[str, list[tuple[Point, str]]] = {}
    # Some layers promise a tensor and return none.
    given = [(p, x) for p, x in zip(points, graph.points, strict=True) if x is not None]
    for point, tensor in given:
        by_number.setdefault(numbers[tensor.name], []).append((point, tensor.name))
    found, of_point = {}, {point.tensor: x for point, x in given}
    for index, tensor in _tensors(float_file, of_point, numbers).items():
        pairs, path = by_number.get(numbers[tensor.name], []), _path(tensor)
        if pairs:
            own = [point for point, name in pairs if name in path]
            found[index] = [point for point, _ in pairs], own
    return found


def _path(tensor):
    """Returns the names of `tensor` and of those in front of it that hold the same values."""
    names = {tensor.name}
    while (position := _same_values(tensor)) is not None:
        tensor = tensor.op.inputs[position]
        names.add(tensor.name)
    return names


def _number(operations):
    """Returns for the name of each tensor of a graph that of the first with the same values.

    Values, in their order, are the same behind what leaves them alone, and where the same is
    computed of the same: converters do that once.
    """
    numbers, first = {}, {}
    for op in operations:
        inputs = tuple(numbers[x.name] for x in op.inputs if x.name in numbers)
        barriers = tuple(
            _limit(x.op) for x in op.inputs
        )  # One of another number keeps twins apart.
        made_of = op.type, inputs, barriers, _settings(op)
        computed = op.type not in _DRAWN and len(inputs) == len(op.inputs)
        name = first.setdefault(made_of, op.name) if computed else op.name
        for position, output in enumerate(op.outputs):
            same = _same_values(output)
            numbers[output.name] = f"{name}:{position}" if same is None else inputs[same]
    return numbers


def _settings(op):
    """Returns the attributes of an operation, the value of a constant among them."""
    attributes = op.node_def.attr
    return tuple((key, attributes[key].SerializeToString()) for key in sorted(attributes))


def _tensors(float_file, of_point, numbers):
    """Returns the tensor of the graph that each computed tensor of a file is."""
    file, graph = float_file.file, float_file.graph
    operations = {op.name: (number, op) for number, op in enumerate(graph.operations)}
    tensors = dict(zip(file.inputs, graph.inputs, strict=True))
    units = {op: stored.unit for (op, _), stored in float_file.weights.items()}
    for op in file.ops:
        for position, index in enumerate(op.outputs):
            tensor = _computed(file, op, position, operations)
            if tensor is None and op.index in units:  # Named by a function that the graph calls.
                tensor = of_point.get(units[op.index].outputs[0])
            moved = tensors.get(op.inputs[0]) if op.name in MOVES else None
            if moved is not None and (
                tensor is None or numbers[moved.name] != numbers[tensor.name]
            ):
                tensor = moved  # Named for the product that it prepares: a Dense of sequences.
            if tensor is not None:
                tensors[index] = tensor
    _drop_parts(file, tensors)
    _drop_steps(file, tensors, numbers)
    _follow(file, tensors)
    return tensors


def _computed(file, op, position, operations):
    """Returns the graph's tensor that an output of a file's operator is, by its name, or `None`."""
    index = op.outputs[position]
    named = [_operation(part, operations) for part in file.name(index).split(";")]
    named = [pair for pair in named if pair is not None]
    if not named:
        return None
    _, operation = max(named, key=lambda pair: pair[0])
    elementwise = operation.type in _ELEMENTWISE and _limit(operation) is None
    if op.name == "TRANSPOSE" and elementwise:
        return None  # Moved in front of the operation, whose name it took.
    if len(operation.outputs) not in (1, len(op.outputs)):
        return None
    tensor = operation.outputs[position if len(operation.outputs) > 1 else 0]
    count = tensor.shape.num_elements()
    fits = count is None or count == int(np.prod(file.shape(index)))
    return tensor if fits else None


def _operation(name, operations):
    """Returns `(position, operation)` of a name, which may have a number behind it, or `None`."""
    name = name.partition(":")[0]
    while name not in operations and name[-1:].isdigit():
        name = name[:-1]  # Of "slice_23" made of "slice_2" one digit is the file's.
    while name and name not in operations:
        name = name.rpartition("/")[0]
        if name in operations and operations[name][1].type not in _CALLS:
            return None
    return operations.get(name)


def _same_values(tensor):
    """Returns the position of the input whose values, in their order, `tensor` holds, or `None`."""
    op = tensor.op
    if op.type == "IdentityN":
        return tensor.value_index
    if op.type in _SAME_VALUES:
        return _SAME_VALUES[op.type]
    if op.type in _SAME_VALUES_IF_AS_MANY:
        position = _SAME_VALUES_IF_AS_MANY[op.type]
        return position if _count(op.inputs[position]) == _count(tensor) else None
    same = (
        _changes_nothing(op)
        or _limit(op) is not None
        or (op.type == "Transpose" and _moves_nothing(op))
    )
    return 0 if same else None


def _count(tensor):
    """Returns the number of values along the known axes of a tensor, and of unknown axes."""
    if tensor.shape.rank is None:
        return None
    return math.prod(n or 1 for n in tensor.shape), list(tensor.shape).count(None)


def _moves_nothing(op):
    """Whether a transposition moves axes of one index alone."""
    order, shape = tf.get_static_value(op.inputs[1]), op.inputs[0].shape
    if order is None or shape.rank is None:
        return False
    kept = [axis for axis in order if shape[axis] != 1]
    return kept == sorted(kept)


def _changes_nothing(op):
    """Whether an operation combines its first input with a constant that leaves it as it is."""
    if op.type not in _NEUTRAL or _count(op.inputs[0]) != _count(op.outputs[0]):
        return False
    value = _constant(op.inputs[1])
    return value is not None and bool(np.all(value == _NEUTRAL[op.type]))


def _constant(tensor):
    """Returns the value of what is computed of constants alone, `None` of anything else."""
    value = tf.get_static_value(tensor)
    if value is not None:
        return value
    op = tensor.op
    if op.type in _SAME_VALUES:
        return _constant(op.inputs[0])
    if op.type not in _ARITHMETIC:
        return None
    operands = []
    for x in op.inputs:
        operands.append(_constant(x))
        if operands[-1] is None:  # All paths through a recurrence would take a minute.
            return None
    return _ARITHMETIC[op.type](*operands)


def _limit(op):
    """Returns the number of a barrier, `None` of anything else."""
    if op.type != "Minimum" or op.inputs[1].op.type != "Const":
        return None
    value = tf.get_static_value(op.inputs[1])
    return float(value) if is_limit(value) else None


def _drop_parts(file, tensors):
    """Leaves of several tensors of one name the last, and those that hold the same values.

    The others are steps on the way to it: the converter took an operation apart.
    """
    moved = {op.outputs[0]: op.inputs[0] for op in file.ops if op.name in MOVES}
    last = {tensor.name: index for index, tensor in tensors.items()}
    same = set()
    for index in last.values():
        while index is not None:
            same.add(index)
            index = moved.get(index)
    for index in set(tensors) - same:
        del tensors[index]


def _drop_steps(file, tensors, numbers):
    """Leaves out the steps on the way to an operation whose own name is not on its last one.

    That of the model's output has the name of the output.
    """
    same = {}
    for index, tensor in tensors.items():
        same.setdefault(numbers[tensor.name], []).append(index)
    for indices in same.values():
        for last in indices if len(indices) > 1 else ():
            index, before = last, file.producer(last)
            while before is not None and _may_move(file, before) and before.inputs[0] in indices:
                index = before.inputs[0]
                before = file.producer(index)
            if before is None or _may_move(file, before):
                continue
            for step in set(indices) & _ancestors(file, before):
                tensors.pop(step, None)


def _may_move(file, op):
    """Whether an operator of a file may return the values of its first input."""
    if op.name in _MAY_MOVE:
        return True
    if op.name not in (*_NEUTRAL_BESIDE, "MINIMUM"):
        return False
    size = math.prod(file.shape(op.inputs[1]))
    if file.num_bytes(op.inputs[1]) != 4 * size:
        return False  # Computed, or stored elsewhere.
    value = file.constant(op.inputs[1])
    if op.name == "MINIMUM":
        return is_limit(value)
    return bool(np.all(value == _NEUTRAL_BESIDE[op.name]))


def _ancestors(file, op):
    """Returns the tensors that are computed for `op` alone or for others, all the way up."""
    found, waiting = set(), list(op.inputs)
    while waiting:
        index = waiting.pop()
        producer = file.producer(index)
        if index not in found and producer is not None:
            found.add(index)
            waiting += producer.inputs
    return found


def _follow(file, tensors):
    """Gives what has no tensor of the graph that of its reshape, or of what it is a reshape of."""
    moves = [op for op in file.ops if op.name in MOVES]
    for op in moves:
        if op.outputs[0] not in tensors and op.inputs[0] in tensors:
            tensors[op.outputs[0]] = tensors[op.inputs[0]]
    for op in reversed(moves):
        if op.inputs[0] not in tensors and op.outputs[0] in tensors:
            tensors[op.inputs[0]] = tensors[op.outputs[0]]


def _lost(found, lowered):
    """Returns the names of layers that have a grid of their own at an output that was not found.

    Constants are stored, not computed; the grids of layers that only move values are others'.
    """
    moved = {
        x
        for unit in lowered.units
        if found.intersection(unit.outputs) and not any(unit.output_quantizers)
        for x in unit.inputs
    }
    found = found | moved  # A layer that keeps the grid has it, too.
    return [
        unit.name
        for unit in lowered.units
        if not isinstance(getattr(unit.layer, "layer", None), Constant)
        and any(
            quantizer is not None and grid_of(x) is not None and x not in found
            for x, quantizer in zip(unit.outputs, unit.output_quantizers, strict=True)
        )
    ]


def _rounded_again(lowered):
    """Returns the tensors that `Quantize` layers bring from one grid to another."""
    return {
        unit.outputs[0]
        for unit in lowered.units
        if isinstance(unit.layer, Quantize) and grid_of(unit.inputs[0]) is not None
    }


def _key(point):
    if point.grid is None:
        return None
    return point.grid.params.scale.item(), point.grid.params.zero_point
