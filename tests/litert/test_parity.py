"""Values are compared in blocks, and counted as if they were compared at once."""

import numpy as np
import pytest

from tfquant.litert.parity import BLOCK, parity


class OneTensor:
    """Stands for a file of one tensor."""

    def __init__(self, scale, zero_point):
        self._scale, self._zero_point = scale, zero_point

    def scale(self, index):
        del index
        return np.array(self._scale, np.float32)

    def zero_point(self, index):
        del index
        return np.array(self._zero_point)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_steps_are_counted_on_both_sides_of_a_block(size, rng):
    received = rng.integers(-128, 128, size).astype("int8")
    apart = np.zeros(size)
    apart[::1000], apart[-1:] = 2, 7
    expected = ((received - 5.0 + apart) * 0.25).astype("float32")
    found = parity(OneTensor([0.25], [5]), 0, expected, received)
    assert (found.values, found.in_steps) == (size, True)
    assert found.differing == (apart > 0).sum()
    assert found.largest == apart.max(initial=0)


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_real_values_are_measured_by_the_largest_of_all_blocks(size):
    received = np.ones(size, "float32")
    expected = received.copy()
    expected[0], expected[-1] = 1.5, 4.0 if size > 1 else 1.5
    found = parity(OneTensor([], []), 0, expected, received)
    assert found.differing == min(size, 2) and not found.in_steps
    assert found.largest == (3.0 / 4.0 if size > 1 else 0.5 / 1.5)


@pytest.mark.parametrize("at", [0, BLOCK, BLOCK + 3])
def test_nan_is_infinitely_far_in_any_block(at):
    expected = np.zeros(BLOCK + 4, "float32")
    expected[at] = np.nan
    for received, grid in (("int8", ([1.0], [0])), ("float32", ([], []))):
        found = parity(OneTensor(*grid), 0, expected, np.zeros(BLOCK + 4, received))
        assert found.differing == 1 and np.isinf(found.largest)
