"""A range that leaves out the rarest values, and the bounded sample that several observers keep."""

import numpy as np

from tfquant.numerics import QuantSpec
from tfquant.observers.base import Observer, Summary
from tfquant.observers.min_max import MinMax, grid_has_room


class Sampled(Observer):
    """Keeps the exact range of what it sees, and a bounded sample of it. Abstract."""

    sample_size = 65_536

    def __init__(self):
        self._extremes = MinMax()
        self._reservoir = Reservoir()

    def update(self, summary: Summary) -> None:
        """Takes in one batch."""
        self._extremes.update(summary)
        self._reservoir.add(summary.sample)

    def share(self, observer) -> None:
        """Takes for its own what another observer of samples has seen."""
        self._extremes, self._reservoir = observer._extremes, observer._reservoir


class Percentile(Sampled):
    """The range that ignores at most `100 - percentile` percent of the values.

        ignored = (100 - percentile) / 100
        low  = the value with ignored / 2 of all values below it
        high = the value with ignored / 2 of all values above it

    Zero is always on the grid, so a range that lies on one side of zero (the output of a relu)
    has one end to choose: the other stays exact, and all of `ignored` may lie beyond the first.
    A sample too small to tell the percentile ignores nothing.

    Args:
        percentile: Percent of the values that the range covers at least, in `(50, 100]`.

    Raises:
        ValueError: If `percentile` is outside `(50, 100]`.
    """

    def __init__(self, percentile: float = 99.99):
        if not 50.0 < percentile <= 100.0:
            raise ValueError(
                f"`percentile` must be above 50 and at most 100. Received: percentile={percentile}."
            )
        super().__init__()
        self.percentile = percentile

    def extremes(self, spec: QuantSpec) -> tuple[float, float]:
        """Returns the exact range.

        Raises:
            ValueError: If nothing was observed.
        """
        return self._extremes.range(spec)

    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Returns the percentile range; the exact one when the grid has room (`grid_has_room`).

        Raises:
            ValueError: If nothing was observed.
        """
        low, high = self._extremes.range(spec)
        if grid_has_room(spec):
            return low, high
        values = self._reservoir.values()
        two_sided = low < 0.0 < high
        ignored = int(values.size * (100.0 - self.percentile) / 100.0 / (1 + two_sided))
        if not ignored:
            return low, high
        lower = float(values[ignored]) if low < 0.0 else low
        upper = float(values[-1 - ignored]) if high > 0.0 else high
        # Where nearly all values are zero the few others are the signal, not outliers.
        return (low, high) if lower == upper == 0.0 else (lower, upper)


class Reservoir:
    """A uniform sample of a stream, of bounded size and the same in every run.

    Each value draws a random key and the lowest `CAPACITY` keys stay: a sample without
    replacement in which every value of the stream had the same chance, however it was cut into
    batches (Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003, with equal weights).
    """

    # Values and keys together are 2**18 floats.
    CAPACITY = 2**17

    def __init__(self):
        self.seen = 0
        self._random = np.random.default_rng(0)
        self._values = np.empty(0, np.float32)
        self._sorted = None
        self._keys = np.empty(0, np.float32)

    def add(self, values: np.ndarray) -> None:
        """Takes in values of any shape.

        Raises:
            ValueError: If a value is NaN or Inf.
        """
        values = np.asarray(values, np.float32).ravel()
        if not np.isfinite(values).all():
            raise ValueError("Observed values must be finite. Received: NaN or Inf in a sample.")
        self.seen += values.size
        keys = self._random.random(values.size, np.float32)
        values = np.concatenate([self._values, values])
        keys = np.concatenate([self._keys, keys])
        if values.size > self.CAPACITY:
            kept = np.argpartition(keys, self.CAPACITY)[: self.CAPACITY]
            values, keys = values[kept], keys[kept]
        self._values, self._keys, self._sorted = values, keys, None

    def values(self) -> np.ndarray:
        """Returns the sample in ascending order."""
        if self._sorted is None:
            self._sorted = np.sort(self._values)  # A copy: keys and values stay pairs.
        return self._sorted
