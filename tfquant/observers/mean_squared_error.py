"""The range of least mean squared error, and the search that finds such a range."""

from collections.abc import Callable

import numpy as np

from tfquant.numerics import QuantSpec, choose_params
from tfquant.observers.min_max import grid_has_room
from tfquant.observers.percentile import Sampled


class MeanSquaredError(Sampled):
    """The range whose grid changes the values least.

        (low, high) = argmin mean((x - fake_quantize(x))**2)

    Clipping the rare values makes the step of all others smaller; the mean squared error weighs
    one against the other (Banner et al. 2019, arXiv:1810.05723; Nagel et al. 2021,
    arXiv:2106.08295, section 3.1). The exact range is among the candidates.
    """

    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Returns the range of least error; the exact one when the grid has room.

        Raises:
            ValueError: If nothing was observed.
        """
        low, high = self._extremes.range(spec)
        if grid_has_room(spec) or low == high:
            return low, high
        return best_range(low, high, spec, self._loss(low, high, spec))

    def _loss(self, low, high, spec):
        """Returns the function that gives the squared error of candidate ranges.

        In a sorted sample the values that round to one level `v` are neighbours, and with the
        running sums of `w`, `w x` and `w x**2` their error takes three differences,

            sum w (x - v)**2 = sum w x**2 - 2 v sum w x + v**2 sum w

        so a candidate costs one binary search a level and not one rounding a value.
        """
        values = self._reservoir.values().astype(np.float64)
        weights = np.ones(values.size)
        # The sample may have missed the extremes. Each was seen at least once, so it counts as
        # one value of all that were offered to the sample.
        one_of_all = values.size / max(self._reservoir.seen, 1) or 1.0
        if not values.size or low < values[0]:
            values, weights = np.r_[low, values], np.r_[one_of_all, weights]
        if high > values[-1]:
            values, weights = np.r_[values, high], np.r_[weights, one_of_all]
        sums = np.zeros((3, values.size + 1))
        np.cumsum([weights, weights * values, weights * values**2], axis=1, out=sums[:, 1:])
        levels = np.arange(spec.qmin, spec.qmax + 1)

        def loss(lows, highs):
            scale, zero_point = choose_params(lows, highs, spec)
            grid = (levels - zero_point[:, None]) * scale[:, None].astype(np.float64)
            ends = np.full((len(lows), levels.size + 1), values.size)
            ends[:, 0] = 0
            ends[:, 1:-1] = np.searchsorted(values, (grid[:, 1:] + grid[:, :-1]) / 2)
            weight, first, second = np.diff(sums[:, ends])
            return (second - 2 * grid * first + grid**2 * weight).sum(axis=1)

        return loss


def best_range(
    low: float,
    high: float,
    spec: QuantSpec,
    loss: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[float, float]:
    """Returns the range inside `low` to `high` of least loss.

    The range is first widened to hold zero, as `choose_params` does. Both ends shrink by one
    factor, then each by its own: coarsely over twelve octaves (an outlier may be a thousand times
    the rest), then finely around what was best. A symmetric grid and a range on one side of zero
    have one end only. Ties go to the wider range.

    Args:
        low: Lowest value that was seen.
        high: Highest value that was seen.
        spec: `QuantSpec` of the grid.
        loss: Takes arrays of lows and highs, returns the loss of each pair.

    Returns:
        The best `(low, high)`.
    """
    exact = np.array([min(low, 0.0), max(high, 0.0)])
    coarse, fine = 2.0 ** -np.arange(0, 12, 0.5), 2.0 ** np.linspace(0.5, -0.5, 15)
    single_ends = () if spec.symmetric or not exact.all() else ((1, 0), (0, 1))
    moves = [(ends, factors) for ends in ((1, 1), *single_ends) for factors in (coarse, fine)]

    best, least = exact, loss(exact[:1], exact[1:])[0]
    for ends, factors in moves:
        start = np.where(ends, exact, best) if factors is coarse else best
        candidates = np.clip(start * factors[:, None] ** np.array(ends), *exact)
        losses = loss(*candidates.T)
        winner = np.argmin(losses)
        if losses[winner] < least:
            best, least = candidates[winner], losses[winner]
    return float(best[0]), float(best[1])
