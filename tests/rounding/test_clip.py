"""The closed form of a range, against a search through all of them."""

import numpy as np
import pytest

from tfquant.rounding.clip import best_range


def expected_error(c, a, h, qmax):
    clipped = np.maximum(a - c, 0) ** 2
    return c**2 * h.sum() / (12 * qmax**2) + (h * clipped).sum()


@pytest.mark.parametrize("qmax", [1, 3, 7, 127])
@pytest.mark.parametrize("size", [1, 2, 50])
def test_no_other_range_is_better(qmax, size, rng):
    a, h = np.abs(rng.standard_t(3, (4, size))), rng.uniform(0, 2, (4, size))
    found = best_range(a, h, qmax)
    for c, row, importance in zip(found, a, h, strict=True):
        assert 0 < c <= row.max()
        tried = np.linspace(0, row.max(), 4001)
        least = min(expected_error(x, row, importance, qmax) for x in tried)
        assert expected_error(c, row, importance, qmax) <= least * (1 + 1e-9)


def test_what_costs_nothing_is_clipped():
    a = np.array([[100.0, 1.0, 1.0]])
    assert best_range(a, np.array([[0.0, 1.0, 1.0]]), 7)[0] <= 1
    assert best_range(a, np.array([[1e6, 1.0, 1.0]]), 7)[0] > 90
    assert best_range(np.zeros((1, 3)), np.ones((1, 3)), 7)[0] == 0
