"""The range of everything that was seen."""

import math

from tfquant.numerics import QuantSpec
from tfquant.observers.base import Observer, Summary


class MinMax(Observer):
    """The exact lowest and highest value of all batches.

        low = min over batches of low_b,  high = max over batches of high_b

    Nothing is ever clipped; one outlier widens the step of every other value.
    """

    def __init__(self):
        self._low = math.inf
        self._high = -math.inf

    def update(self, summary: Summary) -> None:
        """Takes in one batch.

        Raises:
            ValueError: If the batch holds NaN or Inf.
        """
        if not (math.isfinite(summary.low) and math.isfinite(summary.high)):
            raise ValueError(
                f"Observed values must be finite. Received: low={summary.low}, high={summary.high}."
            )
        self._low = min(self._low, summary.low)
        self._high = max(self._high, summary.high)

    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Returns the exact `(low, high)`, whatever the `spec`.

        Raises:
            ValueError: If nothing was observed.
        """
        if self._low > self._high:
            raise ValueError(
                "A range needs at least one batch; nothing was observed. "
                "Run data through the model before asking for ranges."
            )
        return self._low, self._high


def grid_has_room(spec: QuantSpec) -> bool:
    """Whether the grid is so fine that clipping cannot pay: more than 8 bits.

    Clipping trades a bounded gain, a smaller step, against an unbounded loss, the distance of the
    outliers. With 65,536 levels the step over the full range is 256 times finer than that of 8
    bits, usually far below the noise of the 8-bit weights around it, so there is nothing to gain.
    """
    return spec.num_bits > 8
