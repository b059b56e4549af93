"""The range that serves weights best where inputs are independent, without a search."""

import numpy as np


def best_range(magnitudes, importance, qmax) -> np.ndarray:
    """Returns the bound `c` of each row with the least expected error, exactly.

        E(c) = c^2 sum(h) / (12 qmax^2)  +  sum_j h_j max(|w_j| - c, 0)^2

    Rounding errors are spread evenly over a step. Between two magnitudes that follow each other
    the same weights are clipped, and `E` is a parabola, whose lowest point is

        c = sum_clipped(h |w|) / (sum(h) / (12 qmax^2) + sum_clipped(h))

    Args:
        magnitudes: `|w|`, `[rows, k]`.
        importance: What the error of each input costs, `h`, `[rows, k]`.
        qmax: The largest integer.
    """
    order = np.argsort(-magnitudes, axis=1)
    a = np.take_along_axis(magnitudes, order, 1).astype(np.float64)
    h = np.take_along_axis(np.broadcast_to(importance, a.shape), order, 1).astype(np.float64)
    rounding = h.sum(axis=1, keepdims=True) / (12.0 * qmax**2)
    mass, first, second = (np.cumsum(h * a**power, axis=1) for power in (0, 1, 2))
    c = first / np.maximum(rounding + mass, 1e-300)
    c = np.clip(c, np.pad(a[:, 1:], ((0, 0), (0, 1))), a)  # Within its piece.
    error = c**2 * (rounding + mass) - 2 * c * first + second
    return np.take_along_axis(c, error.argmin(axis=1)[:, None], 1)[:, 0]
