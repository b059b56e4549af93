"""Integers for a quadratic error: against exact answers and against what others do."""

import itertools

import numpy as np
import pytest

from tfquant.rounding.moments import Moments
from tfquant.rounding.quadratic import descend, error, gptq, nearest
from tfquant.rounding.refit import Refit, best_ridge

# Weights rounded to so many bits: bounds of the narrow grid.
BITS = {bits: (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) for bits in (2, 3, 4, 8)}


def layer(rng, k=64, channels=128, rows=512, rank=None):
    """Weights, correlated inputs of a layer and their second moments, stacks of one."""
    rank = rank or k
    mixing = rng.normal(size=(rank, k)) * np.geomspace(1, 0.03, rank)[:, None]
    x = rng.normal(size=(rows, rank)) @ mixing + 0.05 * rng.normal(size=(rows, k))
    return rng.normal(size=(1, k, channels)), x, (x.T @ x / rows)[None]


def steps_of(weights, bits):
    return np.abs(weights).max(axis=1, keepdims=True) / BITS[bits][1]


def exact_obq(w, steps, h, bounds):
    """Optimal brain quantization in the order of inputs, the inverse recomputed at each step."""
    w, q, left = w.copy(), np.empty_like(w), list(range(len(w)))
    while left:
        i, inverse = left[0], np.linalg.inv(h[np.ix_(left, left)])
        q[i] = np.clip(np.rint(w[i] / steps), *bounds)
        e = (w[i] - steps * q[i]) / inverse[0, 0]
        w[left] -= inverse[0][:, None] * e
        left = left[1:]
    return q


def rows_of_the_inverse(w, steps, h, bounds, damping=0.01):
    """What the quantizer package and Keras 3.15 do: rows of the full inverse, never updated."""
    inverse = np.linalg.inv(h + damping * np.mean(np.diag(h)) * np.eye(len(h)))
    w, q = w.copy(), np.empty_like(w)
    for i in range(len(w)):
        q[i] = np.clip(np.rint(w[i] / steps), *bounds)
        e = (w[i] - steps * q[i]) / inverse[i, i]
        w[i + 1 :] -= inverse[i, i + 1 :, None] * e
    return q


@pytest.mark.parametrize("k", [1, 2, 15, 16])
@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_is_exact_optimal_brain_quantization(k, bits, rng):
    w, _, h = layer(rng, k, 12)
    steps = steps_of(w, bits)
    q = gptq(w, steps, h, BITS[bits], damping=0.0, order=False)
    np.testing.assert_array_equal(q[0], exact_obq(w[0], steps[0, 0], h[0], BITS[bits]))


def test_gptq_over_a_boundary_of_blocks_is_exact_too(rng):
    w, _, h = layer(rng, 131, 3)
    steps = steps_of(w, 4)
    q = gptq(w, steps, h, BITS[4], damping=0.0, order=False)
    np.testing.assert_array_equal(q[0], exact_obq(w[0], steps[0, 0], h[0], BITS[4]))


@pytest.mark.parametrize("order", [False, True])
def test_gptq_of_inputs_that_are_not_correlated_is_rounding_to_nearest(order, rng):
    w, h = rng.normal(size=(2, 20, 7)), np.stack([np.diag(rng.uniform(0.1, 9, 20))] * 2)
    steps = steps_of(w, 3)
    q = gptq(w, steps, h, BITS[3], order=order)
    np.testing.assert_array_equal(q, nearest(w, steps, BITS[3]))


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_leaves_half_of_the_error_of_rows_of_the_inverse(bits, rng):
    w, _, h = layer(rng)
    steps, bounds = steps_of(w, bits), BITS[bits]
    total = lambda q: error(q, w, steps, h).sum()  # noqa: E731
    theirs = total(rows_of_the_inverse(w[0], steps[0, 0], h[0], bounds)[None])
    ours = total(gptq(w, steps, h, bounds))
    assert ours <= 0.5 * theirs
    assert theirs < total(nearest(w, steps, bounds))


def test_the_order_of_inputs_changes_nothing_where_the_largest_come_first(rng):
    w, _, h = layer(rng, 24, 5)
    steps, places = steps_of(w, 4), rng.permutation(24)
    q = gptq(w, steps, h, BITS[4])
    shuffled = gptq(w[:, places], steps, h[:, places][:, :, places], BITS[4])
    np.testing.assert_array_equal(shuffled, q[:, places])


def test_a_hessian_that_has_no_inverse_is_damped(rng):
    w, _, _ = layer(rng, 40, 6)
    x = rng.normal(size=(10, 40))
    x[:, 3] = 0.0
    h, steps = (x.T @ x / 10)[None], steps_of(w, 4)
    q = gptq(w, steps, h, BITS[4], damping=0.0)
    total = lambda q: error(q, w, steps, h).sum()  # noqa: E731
    assert np.isfinite(q).all()
    assert total(q) < total(nearest(w, steps, BITS[4]))


def test_descent_never_raises_the_error_and_ends_where_no_single_weight_helps(rng):
    w, _, h = layer(rng, 32, 16)
    steps = steps_of(w, 3)
    start = nearest(w, steps, BITS[3])
    before, q = error(start, w, steps, h), start
    for _ in range(4):
        q = descend(q, w, steps, h, BITS[3], 1)
        after = error(q, w, steps, h)
        assert (after <= before + 1e-9).all()
        before = after
    q = descend(q, w, steps, h, BITS[3], 100)
    least = error(q, w, steps, h)
    for i, move in itertools.product(range(32), (-1, 1)):
        moved = q.copy()
        moved[:, i] = np.clip(moved[:, i] + move, *BITS[3])
        assert (error(moved, w, steps, h) >= least - 1e-9).all()


def test_gptq_and_descent_come_near_the_best_of_all_roundings(rng):
    w, _, h = layer(rng, 8, 20)
    steps = steps_of(w, 3)
    low = np.floor(w / steps)
    choices = [low + np.array(c)[None, :, None] for c in itertools.product((0, 1), repeat=8)]
    best = np.min([error(np.clip(q, *BITS[3]), w, steps, h) for q in choices], axis=0)
    q = descend(gptq(w, steps, h, BITS[3]), w, steps, h, BITS[3], 20)
    total = lambda q: error(q, w, steps, h).sum()  # noqa: E731
    assert total(q) <= 1.3 * best.sum() < total(nearest(w, steps, BITS[3]))


def test_moments_are_covariances(rng):
    x, y = rng.normal(3, 1, size=(2, 50, 4)), rng.normal(-1, 2, size=(2, 50, 4))
    found = Moments.of([(x[:, :20], y[:, :20]), (x[:, 20:], y[:, 20:])])
    joined = Moments.of([(x[:, :9], y[:, :9])]) + Moments.of([(x[:, 9:], y[:, 9:])])
    for moments in (found, joined):
        assert moments.count == 50
        for g in range(2):
            both = np.cov(x[g].T, y[g].T, bias=True)
            np.testing.assert_allclose(moments.hessian[g], both[:4, :4], atol=1e-12)
            np.testing.assert_allclose(moments.cross[g], both[:4, 4:], atol=1e-12)
            np.testing.assert_allclose(moments.mean[g], x[g].mean(0))


def test_refitted_weights_give_the_float_outputs(rng):
    w, x, _ = layer(rng, 6, 3, rows=400)
    mixing = np.eye(6) + 0.2 * rng.normal(size=(6, 6))
    seen = x @ mixing + 5.0
    fitted = Refit(w, Moments.of([(seen[None], x[None])]))(1e-9)[0]
    np.testing.assert_allclose(mixing @ fitted, w[0], atol=1e-5)


def test_few_rows_get_a_large_ridge_and_unchanged_inputs_none(rng):
    w, x, _ = layer(rng, 30, 4, rows=4000)
    seen = x + 0.3 * rng.normal(size=x.shape)

    def ridge(rows):
        parts = np.array_split(np.arange(rows), 2)
        return best_ridge(w, [Moments.of([(seen[None, p], x[None, p])]) for p in parts])

    assert ridge(4000) < (ridge(40) or np.inf)  # `None` leaves the weights as they are.
    same = [Moments.of([(x[None, p], x[None, p])]) for p in (slice(0, 9), slice(9, 20))]
    assert best_ridge(w, same) is None
