"""Several ranges of one tensor, to be chosen between by what a model makes of them."""

from tfquant.numerics import QuantSpec
from tfquant.observers.base import Observer, Summary
from tfquant.observers.mean_squared_error import MeanSquaredError
from tfquant.observers.min_max import grid_has_room
from tfquant.observers.percentile import Percentile

# A range that is not wider than another by this factor is as good: a fifth of a bit.
SAME = 1.15


class Auto(Observer):
    """The range of `Percentile`, and others where rare values would make it much wider.

    Rare values are all that matters to a model that looks for events, and nothing to a classifier
    of images: their number and size do not say which. Whoever holds the model asks for `ranges`,
    tries them, and sets `choice`; `tfq.calibrate` compares the model's outputs.

    Attributes:
        choice: Name of the range to return, one of `ranges`.
    """

    sample_size = Percentile.sample_size

    def __init__(self):
        self.choice = "percentile"
        self._percentile, self._least_error = Percentile(), MeanSquaredError()
        self._known = {}

    def update(self, summary: Summary) -> None:
        """Takes in one batch."""
        self._known = {}
        self._percentile.update(summary)

    def ranges(self, spec: QuantSpec) -> dict[str, tuple[float, float]]:
        """Returns the ranges by name; one only where the others are about the same.

        Raises:
            ValueError: If nothing was observed.
        """
        if spec not in self._known:
            self._known[spec] = self._find(spec)
        return self._known[spec]

    def forget(self) -> None:
        """Gives up what was observed: only ranges that were asked for are known from here on."""
        self._percentile = self._least_error = None

    def _find(self, spec):
        found = {"percentile": self._percentile.range(spec)}
        exact = self._percentile.extremes(spec)
        if not grid_has_room(spec) and _span(exact) > SAME * _span(found["percentile"]):
            self._least_error.share(self._percentile)
            found["mean_squared_error"] = self._least_error.range(spec)
            found["min_max"] = exact
        return found

    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Returns the range that was chosen.

        Raises:
            ValueError: If nothing was observed.
        """
        ranges = self.ranges(spec)
        return ranges.get(self.choice, ranges["percentile"])


def _span(ends):
    return max(ends[1], 0.0) - min(ends[0], 0.0)
