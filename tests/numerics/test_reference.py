import math

import numpy as np
import pytest

from tfquant.numerics import packing, reference


@pytest.fixture
def rng():
    return np.random.default_rng(77)


def test_float_activations_give_the_float_product(rng):
    x, q = rng.normal(size=(3, 70)), rng.integers(-8, 8, (70, 5))
    scale = rng.uniform(0.5, 2, (3, 5))
    weight = q * np.repeat(scale, 32, axis=0)[:70]
    y = reference.lowbit_matmul(
        x, q, scale, num_bits=4, group_size=32, activations="float", bias=np.arange(5)
    )
    # x is rounded to float32 on the way in
    np.testing.assert_allclose(y, x @ weight + np.arange(5), atol=1e-4)


@pytest.mark.parametrize("activations", ["per_row", "per_group", "static"])
def test_integer_activations_are_within_half_a_step(rng, activations):
    x, q = rng.normal(size=(4, 64)).astype(np.float32), rng.integers(-8, 8, (64, 6))
    settings = {"num_bits": 4, "group_size": 32, "x_scale": 0.05, "zero_point": 3}
    y = reference.lowbit_matmul(x, q, np.ones((2, 6)), activations=activations, **settings)
    step = 0.05 if activations == "static" else np.abs(x).max() / 127
    bound = step * 0.5001 * np.abs(q).sum(axis=0)
    assert (np.abs(y - x.astype(float) @ q) <= bound).all()


def test_integers_on_the_grid_are_exact(rng):
    x_q, q = rng.integers(-127, 128, (5, 300)), rng.integers(-128, 128, (300, 7))
    x_q[:, 0] = 127  # fixes the scale at exactly one
    y = reference.lowbit_matmul(x_q, q, np.ones((1, 7)), num_bits=8)
    np.testing.assert_array_equal(y, x_q @ q)


def test_zero_points_cancel(rng):
    x_q, q = rng.integers(0, 256, (5, 40)), rng.integers(-128, 128, (40, 7))
    y = reference.lowbit_matmul(
        x_q, q, np.ones((1, 7)), num_bits=8, activations="static", zero_point=-128
    )
    np.testing.assert_array_equal(y, x_q @ q)


def test_rows_are_quantized_symmetric_and_narrow(rng):
    x = rng.normal(size=(6, 50)).astype(np.float32)
    x[1], x[2, 3], x[3, 4] = 0, np.inf, np.nan
    q, scale = reference.quantize_rows(x)
    assert np.abs(q).max(axis=1).tolist() == [127, 0, 0, 0, 127, 127] or q[2].any()
    assert scale[1] == 0 and np.isnan(scale[2]) and np.isnan(scale[3])
    assert q.min() >= -127
    fine = [0, 4, 5]
    assert (np.abs(q[fine] * scale[fine, None] - x[fine]) <= 0.5001 * scale[fine, None]).all()


def test_subnormal_rows_count_as_zero():
    q, scale = reference.quantize_rows(np.full((1, 4), 1e-40, np.float32))
    assert not q.any() and not scale.any()


def test_a_row_that_is_not_finite_is_nan_and_the_others_are_not(rng):
    x = rng.normal(size=(3, 64)).astype(np.float32)
    x[1, 40] = np.inf
    for activations in ("per_row", "per_group", "static"):
        y = reference.lowbit_matmul(
            x,
            rng.integers(-8, 8, (64, 2)),
            np.ones((2, 2)),
            num_bits=4,
            group_size=32,
            activations=activations,
        )
        assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()


def test_one_bit_is_the_product_of_signs(rng):
    x, q = rng.normal(size=(4, 37)), rng.choice([-1, 1], (37, 5))
    x[0, 0], x[0, 1] = 0.0, -0.0  # both count as +1
    y = reference.lowbit_matmul(x, q, np.full((1, 5), 2.0), num_bits=1)
    np.testing.assert_array_equal(y, 2 * np.where(x < 0, -1, 1) @ q)


def test_fused_functions_are_what_they_are_called():
    v = np.linspace(-6, 6, 41)
    erf = np.array([math.erf(a) for a in v * math.sqrt(0.5)])
    np.testing.assert_allclose(reference.fuse(v, "gelu"), v * 0.5 * (1 + erf), atol=1e-13)
    np.testing.assert_allclose(reference.fuse(v, "silu"), v * reference.fuse(v, "sigmoid"))
    np.testing.assert_array_equal(reference.fuse(v, "relu6"), np.clip(v, 0, 6))
    np.testing.assert_allclose(reference.fuse(v, "gelu_tanh"), reference.fuse(v, "gelu"), atol=1e-3)
    with pytest.raises(ValueError, match="`fused` must be one of"):
        reference.fuse(v, "swoosh")
    with pytest.raises(ValueError, match="`activations` must be one of"):
        reference.lowbit_matmul(v[None], np.ones((41, 1)), np.ones(1), num_bits=8, activations="x")


@pytest.mark.parametrize("num_bits", [8, 4, 2, 1])
def test_quantizing_what_was_dequantized_changes_nothing(rng, num_bits):
    v = rng.integers(0, 2**num_bits, (5, 37))
    packed = packing.pack(v, num_bits)
    scale = rng.uniform(0.1, 3, (3, 5)).astype(np.float32)
    zero = rng.integers(0, 2**num_bits, (3, 5)).astype(np.float32)
    groups = {"row_group": 2, "column_group": 8, "zero_point": zero}
    real = reference.dequantize(packed, scale, num_bits=num_bits, columns=37, **groups)
    np.testing.assert_array_equal(
        reference.quantize(real, scale, num_bits=num_bits, **groups), packed
    )


def test_quantize_clips_and_sends_nan_to_the_zero_point():
    x = np.array([[-np.inf, np.inf, np.nan, 0.0]], np.float32)
    packed = reference.quantize(x, np.ones((1, 1)), num_bits=4, column_group=4)
    np.testing.assert_array_equal(packing.unpack(packed, 4, 4), [[0, 15, 8, 8]])


def test_a_codebook_replaces_the_grid(rng):
    v = rng.integers(0, 4, (2, 9))
    book = np.array([-1.0, -0.1, 0.2, 1.5], np.float32)
    real = reference.dequantize(
        packing.pack(v, 2),
        np.full((2, 1), 2.0),
        num_bits=2,
        columns=9,
        column_group=9,
        codebook=book,
    )
    np.testing.assert_array_equal(real, 2 * book[v])
