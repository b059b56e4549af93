"""Which tensor of the float file is which activation of the Keras model.

A tensor and an activation belong together when they have the same values on a sample input. Names
settle the rest: a tensor's name carries the names of the layers that it was computed by.
"""

import numpy as np

from tfquant.convert.tflite.flatbuffer import File
from tfquant.quantizers import grid_of
from tfquant.rewrite.lower import Lowered, Point
from tfquant.wrappers import Quantize

# Two float implementations of one layer differ by rounding, which grows along the network.
RELATIVE_TOLERANCE = 2e-3


def anchor(
    file: File,
    values: dict[int, np.ndarray],
    lowered: Lowered,
    point_values: list[np.ndarray],
    recompute,
) -> tuple[dict[int, list[Point]], dict[int, list[Point]]]:
    """Finds the tensors of each point.

    Args:
        file: The float file.
        values: Values of the file's computed tensors on a sample.
        lowered: From `tfquant.rewrite.lower`.
        point_values: Values of `lowered.points` on the same sample.
        recompute: Function of a list of points that were found, of their values in the file, and of
            a list of those that were not: returns the values of these, computed from the others.
            A network may let rounding grow until nothing is recognized behind some layer.

    Returns:
        `(anchors, rounded_again)`. Of the first, dict from tensor index to its points, all of one
        grid. A tensor may have several (before and behind a flatten that was computed away), and a
        point several tensors (before and behind a reshape), or none. Of the second, likewise,
        the points of other grids: those that `Quantize` layers bring the tensor to.
    """
    found = _found(values, lowered.points, list(point_values), recompute)
    again = _rounded_again(lowered)
    anchors, rounded_again = {}, {}
    for index, points in found.items():
        first = [p for p in points if id(p.tensor) not in again]
        anchors[index] = _settle(file, index, first or points, lowered)
        key = _key(anchors[index][0])
        others = [p for p in points if id(p.tensor) in again and _key(p) != key]
        if others:
            rounded_again[index] = others
    return anchors, rounded_again


def _found(values, points, point_values, recompute):
    """Returns the points of each tensor, by equal values, in their order."""
    floats = {i: v.reshape(-1) for i, v in values.items() if v.dtype == np.float32}
    tensors: dict[int, int] = {}
    found: dict[int, list[int]] = {}
    missing = list(range(len(points)))
    while missing:
        for number in missing:
            expected = point_values[number].reshape(-1)
            tolerance = RELATIVE_TOLERANCE * float(np.abs(expected).max(initial=0.0))
            for index, value in floats.items():
                if value.size == expected.size and np.abs(value - expected).max() <= tolerance:
                    found.setdefault(index, []).append(number)
                    tensors[number] = index
        left = [number for number in missing if number not in tensors]
        if not left or len(left) == len(missing):
            break
        known = [values[i].reshape(point_values[number].shape) for number, i in tensors.items()]
        again = recompute([points[n] for n in tensors], known, [points[n] for n in left])
        for number, value in zip(left, again, strict=True):
            point_values[number] = value
        missing = left
    return {index: [points[n] for n in sorted(numbers)] for index, numbers in found.items()}


def _rounded_again(lowered):
    """Returns the ids of tensors that `Quantize` layers bring from one grid to another."""
    return {
        id(unit.outputs[0])
        for unit in lowered.units
        if isinstance(unit.layer, Quantize) and grid_of(unit.inputs[0]) is not None
    }


def _settle(file, index, points, lowered):
    """Chooses among points of equal values those of one grid."""
    if len({_key(p) for p in points}) > 1:
        name = file.name(index)
        named = [p for p in points if f"/{_layer_name(p, lowered)}" in name]
        chosen = (named or points)[-1]
        points = [p for p in points if _key(p) == _key(chosen)]
    return points


def _layer_name(point, lowered):
    for unit in lowered.units:
        if any(x is point.tensor for x in unit.outputs):
            return unit.name
    return point.name


def _key(point):
    if point.grid is None:
        return None
    return point.grid.params.scale.item(), point.grid.params.zero_point
