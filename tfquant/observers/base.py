"""What every observer is."""

import abc
import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfquant.numerics import QuantSpec

# Of the places that a sample is taken from.
SEED = 0


@dataclasses.dataclass
class Summary:
    """What one batch leaves behind of a tensor: small, so that it can leave the compiled graph.

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
        """Reduces a batch to a vector `[low, high, *sample]`, inside a compiled graph.

        Args:
            x: Real tensor.

        Returns:
            Float tensor of rank 1.
        """
        flat = ops.reshape(ops.cast(x, "float32"), (-1,))
        parts = [ops.min(flat, keepdims=True), ops.max(flat, keepdims=True)]
        if cls.sample_size:
            parts.append(scattered(flat, cls.sample_size))
        return ops.concatenate(parts)

    @staticmethod
    def unpack(vector: np.ndarray) -> Summary:
        """Returns the `Summary` that `summarize` packed into `vector`."""
        return Summary(float(vector[0]), float(vector[1]), np.asarray(vector[2:]))

    @abc.abstractmethod
    def update(self, summary: Summary) -> None:
        """Takes in one batch."""

    @abc.abstractmethod
    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Returns the `(low, high)` that the grid of `spec` should cover.

        Raises:
            ValueError: If nothing was observed.
        """


def scattered(flat, size: int):
    """Returns `size` values of the vector `flat`, all of it when it has no more.

    It is cut into `size` stretches of equal length, and one value taken from each, from a place of
    its own:

        i-th place = floor((i + uniform) * n / size)

    Places at one stride would fall on the same few channels of a tensor wherever stride and
    channels have a common divisor. These have no period, and are the same in every run.
    """
    count = flat.shape[0] if flat.shape[0] is not None else ops.shape(flat)[0]
    if isinstance(count, int):
        size = min(count, size)
        share = _shares(size)
    else:
        size = ops.minimum(count, size)
        share = keras.random.uniform((size,), dtype="float32", seed=SEED)
    stretch = ops.cast(count, "float64") / ops.cast(size, "float64")
    places = (ops.arange(size, dtype="float64") + ops.cast(share, "float64")) * stretch
    # `ops.take` looks for negative places first, and takes twice as long.
    return tf.gather(flat, ops.cast(places, "int64"))


@functools.lru_cache(maxsize=16)
def _shares(size):
    """Returns where in each of `size` stretches a value is taken from."""
    with tf.init_scope():
        shares = keras.random.uniform((size,), dtype="float32", seed=SEED)
        return ops.convert_to_numpy(shares)
