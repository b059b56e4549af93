"""Parts of one tensor, and what its grid leaves of each: a part can be lost in a whole."""

import math

import keras
import numpy as np

from tfquant.configs.elementwise import SameGridConfig
from tfquant.quantizers import Fixed
from tfquant.report import PartReport
from tfquant.report.conversion import FEW_LEVELS
from tfquant.rewrite.lower import Lowered, LoweredUnit
from tfquant.wrappers import Quantize

# A last axis of more columns is one of features, which a kernel mixes: no column is anyone's.
MOST_COLUMNS = 16

# A part that varies by less, relative to its magnitude, holds the same value everywhere.
CONSTANT = 1e-5


def parts_of(unit: LoweredUnit, units: dict) -> list[tuple[str, tuple]]:
    """Returns the parts of a unit's output: name and index of each.

    Args:
        unit: One of a concatenation has the parts that it joins, another its columns, if they are
            few.
        units: From `producers`.
    """
    if is_join(unit):
        return list(_joined(unit, units))
    if isinstance(unit.output_quantizers[0], Fixed):
        return []  # Of probabilities, say: they have one unit, and one range.
    shape = unit.outputs[0].shape
    columns = shape[-1] if len(shape) > 1 else None
    if not columns or not 1 < columns <= MOST_COLUMNS:
        return []
    return [(f"column {number}", (..., number)) for number in range(columns)]


def producers(lowered: Lowered) -> dict:
    """Returns a dict from a KerasTensor to the `LoweredUnit` that computes it."""
    return {x: unit for unit in lowered.units for x in unit.outputs}


def is_join(unit: LoweredUnit) -> bool:
    """Whether a unit is a concatenation."""
    return isinstance(getattr(unit.layer, "layer", None), keras.layers.Concatenate)


def _joined(unit, units):
    axis, start = unit.layer.layer.axis % len(unit.outputs[0].shape), 0
    if axis == 0 or any(x.shape[axis] is None for x in unit.inputs):
        return
    for number, x in enumerate(unit.inputs):
        before = units.get(x)
        while before and isinstance(before.layer, Quantize) and before.inputs[0] is not x:
            x = before.inputs[0]
            before = units.get(x)
        name = before.name if before else f"part {number}"
        stop = start + x.shape[axis]
        yield name, (slice(None),) * axis + (slice(start, stop),)
        start = stop


def report(name: str, signal: np.ndarray, step: float, sqnr: float | None) -> PartReport:
    """Describes a part.

    Args:
        name: Its name.
        signal: What the float model computes there.
        step: Of the grid.
        sqnr: Its signal to quantization noise ratio in dB.
    """
    signal = signal[np.isfinite(signal)] if np.issubdtype(signal.dtype, np.floating) else signal
    low, high = (float(f(signal)) if signal.size else 0.0 for f in (np.min, np.max))
    constant = high - low <= CONSTANT * max(abs(low), abs(high))
    levels = None if constant else 1 + math.floor((high - low) / step)
    return PartReport(name, levels, sqnr)


def ends(lowered: Lowered) -> set[LoweredUnit]:
    """Returns the units whose columns mean something to others: of inputs, outputs and joins."""
    outside, found = set(lowered.model.outputs), set()
    for unit in reversed(lowered.units):
        moves = isinstance(unit.layer, Quantize) or isinstance(
            unit.layer.quantize_config, SameGridConfig
        )
        if any(x in outside for x in unit.outputs):
            found.add(unit)
            outside.update(unit.inputs if moves else ())
        if is_join(unit) or any(x in lowered.model.inputs for x in unit.outputs):
            found.add(unit)
    return found


def swallowed(parts: list[PartReport]) -> list[str]:
    """Returns the names of parts that have few levels, where others have more."""
    return [part.name for part in parts if part.levels is not None and part.levels < FEW_LEVELS]
