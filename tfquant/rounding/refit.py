"""Weights moved so that the quantized model's inputs give the float model's outputs."""

import numpy as np

# Shares of the mean diagonal that may be added to it. The last leaves weights nearly alone.
RIDGES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)


class Refit:
    """Weights that give the float outputs from quantized inputs, for any ridge.

        W* = W + (H + r I)^-1 (C W - H W),   r = ridge * mean(diag H)

    with `H = cov(x, x)` and `C = cov(x, x_float)`, so that `C W` is the covariance of the inputs
    with the float outputs. Means are left to the bias. `H` is taken apart once for all ridges.

    Args:
        weights: `[groups, k, channels]`.
        moments: `Moments`.
    """

    def __init__(self, weights, moments):
        self._weights = weights
        self._values, self._vectors = np.linalg.eigh(moments.hessian)
        self._values = np.maximum(self._values, 0.0)
        self._size = np.maximum(self._values.mean(axis=1, keepdims=True), 1e-30)
        missing = (moments.cross - moments.hessian) @ weights
        self._missing = np.swapaxes(self._vectors, 1, 2) @ missing

    def __call__(self, ridge) -> np.ndarray:
        """Returns the weights for a ridge, a share of the mean diagonal."""
        divisor = self._values + ridge * self._size
        return self._weights + self._vectors @ (self._missing / divisor[:, :, None])


def error(weights, of, moments):
    """Returns how far `weights` are from the float outputs of `of`, but for a constant.

    E |x W - x_float W_float|^2 - const = tr(W^T H W) - 2 tr(W^T C W_float)
    """
    quadratic = np.einsum("gkc,gkc->", weights, moments.hessian @ weights)
    return quadratic - 2 * np.einsum("gkc,gkc->", weights, moments.cross @ of)


def best_ridge(weights, halves, ridges=RIDGES) -> float | None:
    """Returns the ridge that serves rows which weights were not refitted on.

    Each half of the rows is fitted and judged on the other: a layer with many inputs for few rows
    gets a large ridge by itself.

    Args:
        weights: `[groups, k, channels]`.
        halves: Two `Moments`.
        ridges: Ridges to try.

    Returns:
        A ridge; `None` where the weights are best left as they are.
    """
    pairs = [(Refit(weights, fit), judge) for fit, judge in (halves, halves[::-1])]
    best, least = None, sum(error(weights, weights, judge) for _, judge in pairs)
    for ridge in ridges:
        found = sum(error(fit(ridge), weights, judge) for fit, judge in pairs)
        if found < least:
            best, least = ridge, found
    return best
