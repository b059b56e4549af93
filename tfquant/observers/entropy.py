"""The range of least Kullback-Leibler divergence."""

import numpy as np

from tfquant.numerics import QuantSpec, choose_params
from tfquant.observers.mean_squared_error import best_range
from tfquant.observers.min_max import grid_has_room
from tfquant.observers.percentile import Sampled

# Bins of the histogram laid over each candidate range, as in the TensorRT calibrator.
BINS = 2048


class Entropy(Sampled):
    """The range whose grid tells least apart the values before and after.

        P = histogram of the values over the range, those outside it in the first and last bin
        Q = histogram of the values inside it, where all bins of one level that P fills share alike
        (low, high) = argmin sum P log(P / Q)

    This is the calibrator of TensorRT (Migacz, "8-bit inference with TensorRT", GTC 2017), with
    three changes. The bins lie between the rounding boundaries of the grid itself, so that
    asymmetric ranges and any width work. They divide the candidate range, not the exact one: an
    outlier cannot blur the histogram of the rest. Zeros are left out: they are on every grid, and
    the many of a relu would outvote the shape of the others.

    It keeps the shape of a distribution and does not care how far outliers are thrown: where
    distances matter, `MeanSquaredError` is the better choice.
    """

    def range(self, spec: QuantSpec) -> tuple[float, float]:
        """Returns the range of least divergence; the exact one when the grid has room.

        Raises:
            ValueError: If nothing was observed.
        """
        low, high = self._extremes.range(spec)
        values = self._reservoir.values()
        values = values[values != 0.0]
        # Fewer values than bins have no shape to keep.
        if grid_has_room(spec) or low == high or values.size < BINS:
            return low, high
        return best_range(low, high, spec, _loss(values, spec))


def _loss(values, spec):
    """Returns the function that gives the divergence of candidate ranges on sorted `values`.

    All bins of a level share one `Q`, so with `P_l` for the sum of `P` over level `l`

        sum P log(P / Q) = sum_bins P log P - sum_levels P_l log Q_l

    Even values drawn from `Q` itself scatter over the bins; that alone makes a divergence of
    `(filled bins - levels) / (2 n)` on average (Miller 1955), more on ranges with more filled
    bins, and is subtracted. Without it narrow ranges lose by chance.
    """
    num_levels = spec.qmax - spec.qmin + 1
    bins_per_level = BINS // num_levels
    steps = np.arange(num_levels * bins_per_level + 1) / bins_per_level + spec.qmin - 0.5
    # A level that only outliers fill has no share in Q. As if a hundredth of a value were there,
    # the divergence stays finite.
    floor = 0.01 / values.size

    def loss(lows, highs):
        scale, zero_point = choose_params(lows, highs, spec)
        edges = ((steps - zero_point[:, None]) * scale[:, None]).astype(np.float32)
        below = np.searchsorted(values, edges)
        num_inside = below[:, -1:] - below[:, :1]
        q = np.diff(below[:, ::bins_per_level]) / np.maximum(num_inside, 1)
        below[:, 0], below[:, -1] = 0, values.size
        p = np.diff(below) / values.size
        p_level = np.diff(below[:, ::bins_per_level]) / values.size
        filled = (p > 0).reshape(len(p), num_levels, bins_per_level).sum(axis=2)
        q = np.maximum(q / np.maximum(filled, 1), floor)
        divergence = (p * np.log(np.maximum(p, floor))).sum(axis=1)
        divergence -= (p_level * np.log(q)).sum(axis=1)
        return divergence - np.maximum(filled - 1, 0).sum(axis=1) / (2 * values.size)

    return loss
