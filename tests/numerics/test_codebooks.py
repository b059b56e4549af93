"""Tables of levels against published numbers and arithmetic; k-means against all partitions."""

import itertools

import numpy as np
import pytest

from tfquant.numerics.codebooks import (
    TABLES,
    additive_powers_of_two,
    k_means,
    nearest_level,
    normal_float,
    powers_of_two,
)

# Dettmers et al. 2023, appendix E.
NF4 = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]


def test_normal_float_of_4_bits_is_the_published_table():
    np.testing.assert_allclose(normal_float(4), NF4, atol=1e-6)


def test_powers_of_two_have_one_bit_set():
    levels = powers_of_two(4)
    np.testing.assert_array_equal(np.frexp(np.abs(levels[levels != 0]))[0], 0.5)
    assert levels[0] == -1 and levels[-1] == 1 and (levels == 0).sum() == 1


def test_additive_powers_of_two_of_5_bits_are_the_sums_of_two_terms():
    terms = [0, 1, 1 / 4, 1 / 16], [0, 1 / 2, 1 / 8, 1 / 32]
    sums = {a + b for a, b in itertools.product(*terms)}
    expected = sorted({s / 1.5 for s in sums} | {-s / 1.5 for s in sums})
    np.testing.assert_allclose(additive_powers_of_two(5), expected, rtol=1e-6)


@pytest.mark.parametrize("num_bits", range(2, 9))
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_sorted_hold_zero_and_fit_their_bits(name, num_bits):
    levels = TABLES[name](num_bits)
    assert (np.diff(levels) > 0).all() and 0 in levels
    assert 2**num_bits - 1 <= len(levels) <= 2**num_bits
    assert np.abs(levels).max() == 1


@pytest.mark.parametrize("num_bits", [1, 9, 4.0])
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_widths_are_refused(name, num_bits):
    with pytest.raises(ValueError, match=r"2 to 8 bits. Received: num_bits="):
        TABLES[name](num_bits)


@pytest.mark.parametrize("shared", [True, False])
def test_the_nearest_level_is_the_one_of_least_distance(shared, rng):
    x = rng.normal(size=(5, 40))
    levels = np.sort(rng.normal(size=6 if shared else (5, 6)), axis=-1)
    distances = np.abs(x[..., None] - (levels if shared else levels[:, None]))
    np.testing.assert_array_equal(nearest_level(x, levels), distances.argmin(-1))


def best_partition(x, h, count):
    """Least error over all ways to cut sorted values into runs."""
    order = np.argsort(x)
    x, h = x[order], h[order]

    def cost(start, stop):
        part, mass = x[start:stop], h[start:stop]
        centre = np.average(part, weights=mass)
        return (mass * (part - centre) ** 2).sum()

    cuts = itertools.combinations(range(1, len(x)), count - 1)
    return min(sum(cost(a, b) for a, b in itertools.pairwise([0, *cut, len(x)])) for cut in cuts)


@pytest.mark.parametrize("weighted", [False, True])
def test_k_means_comes_near_to_the_best_partition(weighted, rng):
    for _ in range(10):
        x = rng.normal(size=12)
        h = rng.uniform(0.1, 3, 12) if weighted else np.ones(12)
        (levels,) = k_means(x[None], 3, h[None])
        error = (h * (x - levels[nearest_level(x, levels)]) ** 2).sum()
        # Lloyd's steps end in local minima: of such small sets at most half again as far.
        assert best_partition(x, h, 3) * (1 - 1e-9) <= error <= 2.5 * best_partition(x, h, 3)


def test_k_means_loses_nothing_of_few_different_values():
    x = np.float32([[3, 1, 1, 3, 2, 2, 1]])
    levels = k_means(x, 4)
    np.testing.assert_array_equal(levels, [[1, 2, 3, 3]])


def test_weights_draw_levels_to_them():
    x, h = np.float64([[0, 1, 10, 11]]), np.float64([[1, 3, 1, 1]])
    np.testing.assert_allclose(k_means(x, 2, h), [[0.75, 10.5]])


def test_k_means_refuses_no_values():
    with pytest.raises(ValueError, match=r"Received: shape \(2, 0\), count=4"):
        k_means(np.empty((2, 0)), 4)
