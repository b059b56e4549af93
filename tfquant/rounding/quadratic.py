"""Integers that serve a quadratic error: GPTQ, and descent by single weights.

All functions take a stack of problems: `weights` and `steps` `[groups, k, channels]`, `hessian`
`[groups, k, k]`. The error of integers `q` is, summed over groups and channels,

    (steps * q - weights)^T hessian (steps * q - weights)

Integers are those from `bounds[0]` to `bounds[1]`, or, where `bounds` is an array, its values: a
sorted vector, or `[groups, channels, levels]`.
"""

import numpy as np

from tfquant.numerics.codebooks import nearest_level

# Columns whose errors are handed on together.
BLOCK = 128

# What is added to the diagonal, as a share of its mean, until it can be factored.
DAMPINGS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def nearest(weights, steps, bounds):
    """Returns the nearest integers within `bounds`, `(qmin, qmax)`."""
    return np.clip(np.rint(weights / steps), *bounds)


def to_grid(x, bounds):
    """Returns the integers that are nearest to `x`, `[groups, channels]`."""
    if isinstance(bounds, tuple):
        return np.clip(np.rint(x), *bounds)
    if bounds.ndim == 1:
        return bounds[nearest_level(x, bounds)]
    index = nearest_level(x[..., None], bounds)
    return np.take_along_axis(bounds, index, axis=-1)[..., 0]


def error(integers, weights, steps, hessian):
    """Returns the error of each channel, `[groups, channels]`."""
    d = integers * steps - weights
    return np.einsum("gkc,gkc->gc", d, hessian @ d)


def damped(hessian, damping):
    """Returns `hessian` with a share of its mean diagonal added, dead inputs made 1.

    An input that is always the same says nothing about its weights, which are then rounded to
    the nearest.
    """
    h = np.array(hessian, np.float64)
    diagonal = np.einsum("gkk->gk", h)  # A view.
    mean = diagonal.mean(axis=1, keepdims=True)
    diagonal[diagonal <= 0] = 1.0
    diagonal += damping * mean
    return h


def inverse_factor(hessian, damping):
    """Returns the upper Cholesky factor `u` of the inverse, `u^T u = hessian^-1`.

    Where the damping is too small for the matrix to be factored, it is raised.
    """
    for more in DAMPINGS:
        h = damped(hessian, max(damping, more))
        try:
            # With the order of inputs reversed, a lower factor of H gives the upper one of H^-1.
            lower = np.linalg.cholesky(h[:, ::-1, ::-1])
            u = np.linalg.inv(lower)[:, ::-1, ::-1]
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(u).all():
            return u
    raise ValueError("A Hessian must be finite. Received: one that no damping makes invertible.")


def gptq(weights, steps, hessian, bounds, damping=0.01, order=True):
    """Rounds input by input and lets the inputs to come make up for the error.

        q_i = round(w_i / s_i),   w_j <- w_j - (w_i - s_i q_i) u_ij / u_ii  for j > i

    with the upper Cholesky factor `u` of the inverse Hessian: its row `i` is that of the inverse
    of what is left when the inputs before `i` are fixed, which a row of the full inverse is not
    (Frantar et al. 2022, arXiv:2210.17323, section 3.3).

    Args:
        weights: Real weights.
        steps: Their steps.
        hessian: Second moments of the inputs.
        bounds: `(qmin, qmax)`.
        damping: Share of the mean diagonal that is added to it.
        order: Whether inputs with the largest diagonal come first.

    Returns:
        Integers, `[groups, k, channels]`.
    """
    w, steps = np.array(weights, np.float64), np.broadcast_to(steps, weights.shape)
    places = np.arange(w.shape[1])[None].repeat(len(w), axis=0)
    if order:
        places = np.argsort(-np.einsum("gkk->gk", hessian), axis=1, kind="stable")
    rows = places[:, :, None]
    w, s = np.take_along_axis(w, rows, 1), np.take_along_axis(steps, rows, 1)
    h = np.take_along_axis(np.take_along_axis(hessian, rows, 1), places[:, None, :], 2)
    q = _rounded_in_turn(w, s, inverse_factor(h, damping), bounds)
    result = np.empty_like(q)
    np.put_along_axis(result, rows, q, 1)
    return result


def _rounded_in_turn(w, steps, u, bounds):
    q, size = np.empty_like(w), w.shape[1]
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        errors = np.empty_like(w[:, start:stop])
        for i in range(start, stop):
            q[:, i] = to_grid(w[:, i] / steps[:, i], bounds)
            e = (w[:, i] - steps[:, i] * q[:, i]) / u[:, i, i, None]
            w[:, i + 1 : stop] -= u[:, i, i + 1 : stop, None] * e[:, None]
            errors[:, i - start] = e
        w[:, stop:] -= np.swapaxes(u[:, start:stop, stop:], 1, 2) @ errors
    return q


def descend(integers, weights, steps, hessian, bounds, sweeps):
    """Lowers the error by one weight after the other, others fixed; it never rises.

        q_i <- round(q_i - (H (s q - w))_i / (H_ii s_i))

    Args:
        integers: Where to begin.
        weights, steps, hessian, bounds: As of `gptq`.
        sweeps: How often to go through all weights; fewer if nothing changes any more.

    Returns:
        Integers.
    """
    q, steps = np.array(integers, np.float64), np.broadcast_to(steps, weights.shape)
    gradient = hessian @ (q * steps - weights)
    for _ in range(sweeps):
        changed = False
        for i in range(q.shape[1]):
            alive = hessian[:, i, i, None] > 0
            divisor = np.where(alive, hessian[:, i, i, None], 1.0) * steps[:, i]
            wanted = to_grid(q[:, i] - gradient[:, i] / divisor, bounds)
            move = np.where(alive, wanted - q[:, i], 0.0)
            if move.any():
                changed = True
                q[:, i] += move
                gradient += hessian[:, :, i, None] * (steps[:, i] * move)[:, None]
        if not changed:
            break
    return q
