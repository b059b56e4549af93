"""Expected against received: in steps of the file's grid, or as real values."""

import dataclasses

import numpy as np

from tfquant.litert.flatbuffer import File
from tfquant.litert.interpreter import quantize
from tfquant.report import Parity

# Values that are compared together: few enough for the cache, and for memory.
BLOCK = 2**16


def parity(file: File, index: int, expected: np.ndarray, received: np.ndarray) -> Parity:
    """Compares real values with what a tensor of a file holds.

    Expected values are counted in steps of the file's grid, and not clipped to it: a grid that is
    too narrow for them makes a difference. NaN is infinitely far from everything but NaN.

    Args:
        file: The file.
        index: The tensor.
        expected: Real values.
        received: Values of the tensor, of the same size.
    """
    expected, received = expected.reshape(-1), received.reshape(-1)
    integer = np.issubdtype(received.dtype, np.integer)
    differing, farthest, largest = 0, 0.0, 0.0
    for start in range(0, received.size, BLOCK):
        ours, theirs = (x[start : start + BLOCK] for x in (expected, received))
        if integer:
            ours = in_steps(file, index, ours)
            if np.array_equal(ours, theirs):
                continue
        else:
            ours = ours.astype(np.float64)
            finite = np.abs(ours[np.isfinite(ours)])
            largest = max(largest, float(finite.max(initial=0.0)))
        apart = _apart(ours, theirs.astype(np.float64))
        differing += int((apart > 0).sum())
        farthest = max(farthest, float(apart.max(initial=0.0)))
    if integer:
        return Parity(received.size, differing, farthest)
    return Parity(received.size, differing, farthest / max(largest, 1e-12), in_steps=False)


def _apart(expected, received):
    """Returns how far values are apart: 0 where both are the same, or both NaN."""
    with np.errstate(invalid="ignore"):  # Inf - Inf.
        apart = np.abs(expected - received)
    same = (expected == received) | (np.isnan(expected) & np.isnan(received))
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def of_outputs(file: File, expected, received, labels=None) -> Parity:
    """Compares what a model and its file return, with the share of equal predictions.

    Args:
        file: The file.
        expected: One array of real values for each output, in the file's order.
        received: What the file returned, likewise.
        labels: One for each row, or one row of as many numbers as there are scores; `None` without.
    """
    outputs = list(zip(file.outputs, expected, received, strict=True))
    parts = [parity(file, index, *pair) for index, *pair in outputs]
    pairs = [(_on_grid(file, index, ours), theirs) for index, ours, theirs in outputs]
    total = sum(parts[1:], parts[0])
    return dataclasses.replace(
        total,
        rows=len(received[0]),
        equal_predictions=equal_predictions(pairs),
        accuracies=None if labels is None else _accuracies(expected, received, labels),
    )


def _accuracies(expected, received, labels):
    """Returns the shares of rows that model and file get right.

    Raises:
        ValueError: If labels do not fit the outputs.
    """
    scores, labels = expected[0], np.asarray(labels)
    fits = len(expected) == 1 and scores.ndim == 2 and len(labels) == len(scores)
    if fits and labels.shape == scores.shape and scores.shape[1] > 1:
        labels = labels.argmax(-1)
    elif not (fits and labels.size == len(scores) and labels.dtype.kind in "biuf"):
        shapes = [y.shape for y in expected]
        raise ValueError(
            "`labels` must be one for each row of scores, or as many numbers as scores. Received: "
            f"labels of shape {labels.shape} for outputs of shapes {shapes}."
        )
    ours, theirs = (
        float(np.mean(y[0].argmax(-1) == labels.reshape(-1))) for y in (expected, received)
    )
    return ours, theirs


def _on_grid(file, index, values):
    """Returns values on the grid of a tensor, as real numbers where one of them is NaN."""
    return values if np.isnan(values).any() else quantize(file, index, values)


def in_steps(file: File, index: int, values: np.ndarray) -> np.ndarray:
    """Returns the integers nearest to real values on the grid of a tensor, as if it had no end."""
    scale = file.scale(index)
    if not scale.size:
        return values.astype(np.float64)
    return np.rint(values / scale[0]).astype(np.float64) + file.zero_point(index)[0]


def equal_predictions(outputs) -> float | None:
    """Returns the share of rows whose largest value is the same one in all outputs.

    A row that holds NaN has none, and is equal to no other.

    Args:
        outputs: Pairs of arrays, expected and received.

    Returns:
        `None` where no output is a vector of scores.
    """
    equal = [
        (expected.argmax(-1) == received.argmax(-1))
        & ~(np.isnan(expected) | np.isnan(received)).any(-1)
        for expected, received in outputs
        if expected.ndim == 2 and expected.shape[1] > 1
    ]
    return float(np.mean(np.all(equal, axis=0))) if equal else None
