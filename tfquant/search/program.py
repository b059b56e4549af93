"""The best mixture by what layers cost one at a time: an integer linear program."""

import dataclasses

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

# Coefficients are given to the solver in units of a bound, with this much room for its tolerance.
ROOM = 1e-9


@dataclasses.dataclass(frozen=True)
class Item:
    """Layers that have one choice together.

    Attributes:
        names: Names of the layers.
        noise: Dict from choices to what they add to what is to be small.
        costs: Dict from choices to a tuple of what they take of each bound.
    """

    names: tuple[str, ...]
    noise: dict[str, float]
    costs: dict[str, tuple[float, ...]]


def solve(items: list[Item], bounds) -> list[str] | None:
    """Returns the choice of each item with the least noise within all bounds.

        minimize  sum_ic noise_ic x_ic   with  sum_ic cost_ic x_ic <= bound,  sum_c x_ic = 1

    By `scipy.optimize.milp` (HiGHS), to the optimum.

    Args:
        items: `Item`s.
        bounds: A number for each cost; `inf` for none.

    Returns:
        List of choices, one for each item; `None` where no choices keep the bounds.
    """
    return _solve(items, bounds, False)


def nearest(items: list[Item], bounds) -> list[str]:
    """Returns the choices that go beyond bounds by the smallest factor."""
    return _solve(items, bounds, True)


def _solve(items, bounds, relaxed):
    """Solves; with `relaxed`, for the smallest factor by which all bounds grow."""
    pairs = [(i, choice) for i, item in enumerate(items) for choice in item.noise]
    noise = np.array([items[i].noise[choice] for i, choice in pairs], float)
    scale = np.max(np.abs(noise), initial=0.0) or 1.0
    costs = np.array([items[i].costs[choice] for i, choice in pairs], float).reshape(len(pairs), -1)
    kept = [k for k, bound in enumerate(bounds) if np.isfinite(bound)]
    rows = [costs[:, k] / bounds[k] for k in kept]
    one = np.zeros((len(items), len(pairs)))
    for column, (i, _) in enumerate(pairs):
        one[i, column] = 1
    width = len(pairs) + relaxed
    objective = np.zeros(width)
    objective[: len(pairs)] = noise / scale
    if relaxed:
        objective[:] = 0
        objective[-1] = 1
    pad = lambda x, last=0.0: np.append(x, last) if relaxed else x  # noqa: E731
    constraints = [LinearConstraint(np.array([pad(row) for row in one]), 1, 1)]
    if rows:
        matrix = np.array([pad(row, -1.0) for row in rows])
        constraints.append(LinearConstraint(matrix, -np.inf, 0.0 if relaxed else 1 + ROOM))
    whole = np.ones(width)
    top = np.ones(width)
    if relaxed:
        whole[-1], top[-1] = 0, np.inf
    result = milp(
        objective,
        integrality=whole,
        bounds=Bounds(0, top),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        return None
    chosen = [None] * len(items)
    for (i, choice), x in zip(pairs, result.x, strict=False):
        if x > 0.5:
            chosen[i] = choice
    return chosen
