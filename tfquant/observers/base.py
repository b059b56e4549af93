"""What every observer is."""

import abc
import dataclasses
import functools

import keras
import numpy as np
from keras import ops

from tfquant.numerics import QuantSpec

# Of the places that a sample is taken from.
SEED = 0


@dataclasses.dataclass
class Summary:
    """What one batch leaves behind of a tensor.

    Attributes:
        low: Lowest value of the batch.
        high: Highest value of the batch.
        sample: Values from all over the batch, at most `sample_size` of the observer (empty when
            it needs none). Extremes may be missing from it: they are `low`, `high`.
    """

    low: float
    high: float
    sample: np.ndarray


class Observer(abc.ABC):
    """Watches the values of one tensor over many batches and yields a range.

    A subclass says how many values of a batch it wants to see (`sample_size`), takes them in
    `update`, and answers in `range`.
    """

    sample_size = 0

    @classmethod
    def summarize(cls, x):
        """Reduces a batch to what observers take in.

        Args:
            x: Real array.

        Returns:
            `Summary`.
        """
        flat = np.asarray(x, np.float32).reshape(-1)
        sample = scattered(flat, cls.sample_size) if cls.sample_size else flat[:0]
        return Summary(float(flat.min()), float(flat.max()), sample)

    @abc.abstractmethod
    def update(self, summary: Summary) -> None:
        """Takes in one batch."""

    @abc.abstractmethod
    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Returns the `(low, high)` that the grid of `spec` should cover.

        Raises:
            ValueError: If nothing was observed.
        """


def scattered(flat: np.ndarray, size: int) -> np.ndarray:
    """Returns `size` values of the vector `flat`, all of it when it has no more.

    It is cut into `size` stretches of equal length, and one value taken from each, from a place of
    its own:

        i-th place = floor((i + uniform) * n / size)

    Places at one stride would fall on the same few channels of a tensor wherever stride and
    channels have a common divisor. These have no period, and are the same in every run.
    """
    if len(flat) <= size:
        return flat.copy()
    return flat[((np.arange(size) + _shares(size)) * (len(flat) / size)).astype(np.int64)]


@functools.lru_cache(maxsize=16)
def _shares(size):
    """Returns where in each of `size` stretches a value is taken from."""
    return ops.convert_to_numpy(keras.random.uniform((size,), dtype="float32", seed=SEED))
