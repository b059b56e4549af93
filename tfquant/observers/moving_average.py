"""A range that follows the batches."""

from tfquant.numerics import QuantSpec
from tfquant.observers.base import Observer, Summary
from tfquant.observers.min_max import MinMax, grid_has_room


class MovingAverage(Observer):
    """Exponential moving average of the extremes of each batch.

        low  <- momentum * low  + (1 - momentum) * low_b
        high <- momentum * high + (1 - momentum) * high_b

    The first batch sets both. One wild batch moves the range by a fraction only (Jacob et al.
    2018, arXiv:1712.05877, section 3.1). Alone among the observers it depends on the order of
    the batches: the last ones count most.

    Args:
        momentum: Share of the old range that a batch leaves, in `[0, 1)`.

    Raises:
        ValueError: If `momentum` is outside `[0, 1)`.
    """

    def __init__(self, momentum: float = 0.9):
        if not 0.0 <= momentum < 1.0:
            raise ValueError(
                f"`momentum` must be at least 0 and below 1. Received: momentum={momentum}."
            )
        self.momentum = momentum
        self._extremes = MinMax()
        self._average = None

    def update(self, summary: Summary) -> None:
        """Takes in one batch."""
        self._extremes.update(summary)
        batch = (summary.low, summary.high)
        kept = self.momentum
        self._average = (
            batch
            if self._average is None
            else tuple(
                kept * old + (1 - kept) * new for old, new in zip(self._average, batch, strict=True)
            )
        )

    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Returns the averaged range; the exact one when the grid has room (`grid_has_room`).

        Raises:
            ValueError: If nothing was observed.
        """
        extremes = self._extremes.range(spec)
        return extremes if grid_has_room(spec) else self._average
