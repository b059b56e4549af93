"""Which tensor of the float file is which activation of the Keras model.

A tensor and an activation belong together when they have the same values on a sample input. Names
settle the rest: a tensor's name carries the names of the layers that it was computed by.
"""

import numpy as np

from tfquant.convert.tflite.flatbuffer import File
from tfquant.layers.parts import Constant
from tfquant.quantizers import grid_of
from tfquant.rewrite.lower import Lowered, Point
from tfquant.wrappers import Quantize

# Two float implementations of one layer differ by rounding, which grows along the network.
RELATIVE_TOLERANCE = 2e-3


def anchor(
    file: File,
    values: dict[int, np.ndarray],
    lowered: Lowered,
    compute,
) -> tuple[dict[int, list[Point]], dict[int, list[Point]], list[str]]:
    """Finds the tensors of each point.

    Args:
        file: The float file.
        values: Values of the file's computed tensors on a sample.
        lowered: From `tfquant.rewrite.lower`.
        compute: Function of points, and of pairs of other points and the values in their place,
            that returns the values of the points on the same sample.

    Returns:
        `(anchors, rounded_again, lost)`. Of the first, dict from tensor index to its points, all of
        one grid. A tensor may have several (before and behind a flatten that was computed away),
        and a point several tensors (before and behind a reshape), or none. Of the second, likewise,
        the points of other grids: those that `Quantize` layers bring the tensor to. The last, names
        of layers whose output has a grid and no tensor.
    """
    found = _found(values, lowered.points, compute)
    again = _rounded_again(lowered)
    anchors, rounded_again = {}, {}
    for index, points in found.items():
        first = [p for p in points if id(p.tensor) not in again]
        anchors[index] = _settle(file, index, first or points, lowered)
        key = _key(anchors[index][0])
        others = [p for p in points if id(p.tensor) in again and _key(p) != key]
        if others:
            rounded_again[index] = others
    found = {id(point.tensor) for points in found.values() for point in points}
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


def _found(values, points, compute):
    """Returns the points of each tensor, by equal values, in their order.

    A network may let rounding grow until nothing is recognized behind some layer: what was not
    found is computed again from the file's own values of what was.
    """
    floats = {i: v.reshape(-1) for i, v in values.items() if v.dtype == np.float32}
    found: dict[int, list[int]] = {}
    known: dict[int, tuple] = {}
    missing = list(range(len(points)))
    while missing:
        computed = compute([points[n] for n in missing], known.values())
        for number, expected in zip(missing, computed, strict=True):
            tolerance = RELATIVE_TOLERANCE * float(np.abs(expected).max(initial=0.0))
            flat = expected.reshape(-1)
            for index, value in floats.items():
                if value.size == flat.size and np.abs(value - flat).max() <= tolerance:
                    found.setdefault(index, []).append(number)
                    known[number] = points[number], value.reshape(expected.shape)
        left = [number for number in missing if number not in known]
        if len(left) == len(missing):
            break
        missing = left
    return {index: [points[n] for n in sorted(numbers)] for index, numbers in found.items()}


def _lost(found, lowered):
    """Returns the names of layers that have a grid of their own at an output that was not found.

    Constants are stored, not computed; the grids of layers that only move values are others'.
    """
    return [
        unit.name
        for unit in lowered.units
        if not isinstance(getattr(unit.layer, "layer", None), Constant)
        and any(
            quantizer is not None and grid_of(x) is not None and id(x) not in found
            for x, quantizer in zip(unit.outputs, unit.output_quantizers, strict=True)
        )
    ]


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
