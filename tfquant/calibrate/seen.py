"""What calibration data cannot tell a model, in words."""

import hashlib

import numpy as np


class Seen:
    """Notes what the batches of calibration data have in common.

    Args:
        inputs: `model.inputs`.
    """

    def __init__(self, inputs):
        self._inputs = inputs
        self._batches = self._rows = 0
        self._first, self._same = None, True
        self._hash = hashlib.sha256()
        self._ranges = [(np.inf, -np.inf)] * len(inputs)

    def note(self, arrays) -> None:
        """Notes a batch: a list of arrays, one for each input."""
        if self._first is None:
            self._first = [array[:1] for array in arrays]
        self._batches += 1
        self._rows += len(arrays[0])
        for array in arrays:
            plain = array.astype(str) if array.dtype == object else array
            self._hash.update(np.ascontiguousarray(plain))
        pairs = zip(arrays, self._first, strict=True)
        self._same = self._same and all(_equal(array, first) for array, first in pairs)
        for index, array in enumerate(arrays):
            if array.dtype.kind == "f":
                low, high = self._ranges[index]
                self._ranges[index] = min(low, array.min()), max(high, array.max())

    def record(self, observer) -> dict:
        """Returns what was seen: who watched, how many rows, and a hash of them all in order."""
        named = observer if isinstance(observer, str) else getattr(observer, "__name__", "own")
        return {"observer": named, "rows": self._rows, "sha256": self._hash.hexdigest()}

    def doubts(self, steps: int | None) -> list[str]:
        """Returns why ranges may be wrong, empty where nothing speaks for it.

        Args:
            steps: Number of batches that was asked for.
        """
        found = []
        if steps is not None and self._batches < steps:
            found.append(fewer(self._batches, steps))
        if self._rows == 1:
            found.append("there is 1 row")
        constant = [
            f"input '{x.name}' is {low:g} everywhere"
            for x, (low, high) in zip(self._inputs, self._ranges, strict=True)
            if low == high
        ]
        if self._rows > 1 and self._same and len(constant) < len(self._inputs):
            found.append(f"all {self._rows} rows are the same")
        return found + constant


def fewer(batches: int, steps: int) -> str:
    """Says that data ended before the number of batches that was asked for."""
    return f"the data end after {batches} of steps={steps} batches"


def _equal(array, first):
    return array.shape[1:] == first.shape[1:] and bool((array == first).all())
