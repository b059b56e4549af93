"""What every observer is."""

import abc
import dataclasses

import numpy as np
from keras import ops

from tfquant.numerics import QuantSpec


@dataclasses.dataclass
class Summary:
    """What one batch leaves behind of a tensor: small, so that it can leave the compiled graph.

    Attributes:
        low: Lowest value of the batch.
        high: Highest value of the batch.
        sample: Values of the batch at even strides, at most `sample_size` of the observer
            (empty when it needs none). Extremes may be missing from it: they are `low`, `high`.
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

        The stride of the sample is odd, so that it does not settle on a few channels of a tensor
        whose channels number a power of two.

        Args:
            x: Real tensor.

        Returns:
            Float tensor of rank 1.
        """
        flat = ops.reshape(ops.cast(x, "float32"), (-1,))
        parts = [ops.min(flat, keepdims=True), ops.max(flat, keepdims=True)]
        if cls.sample_size:
            stride = ops.shape(flat)[0] // cls.sample_size
            parts.append(flat[:: stride + 1 - stride % 2])
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
