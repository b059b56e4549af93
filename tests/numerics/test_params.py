from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tfquant import QuantSpec
from tfquant.numerics import choose_params

reals = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)
ranges = st.tuples(reals, reals).map(sorted)
grids = st.builds(
    QuantSpec, st.integers(2, 16), signed=st.booleans(), symmetric=st.just(False)
) | st.builds(QuantSpec, st.integers(2, 16), symmetric=st.just(True), narrow_range=st.booleans())

ULP = Fraction(1, 2**23)  # Scales are float32: the exact one, rounded once.


@given(ranges, grids)
def test_zero_is_exactly_representable(bounds, spec):
    zero_point = choose_params(*bounds, spec).zero_point
    assert zero_point.dtype == np.int32
    assert spec.qmin <= zero_point <= spec.qmax


@given(ranges, grids)
def test_the_grid_covers_the_range_to_within_half_a_step(bounds, spec):
    scale, zero_point = choose_params(*bounds, spec)
    scale, zero_point = Fraction(float(scale)), int(zero_point)
    slack = scale / 2 + scale * 2**16 * ULP  # Half a step is the rounding of the zero point.
    assert (spec.qmin - zero_point) * scale - slack <= min(Fraction(bounds[0]), 0)
    assert (spec.qmax - zero_point) * scale + slack >= max(Fraction(bounds[1]), 0)


@given(ranges, st.integers(2, 16), st.booleans())
def test_an_asymmetric_step_divides_the_range_evenly(bounds, num_bits, signed):
    low, high = min(Fraction(bounds[0]), 0), max(Fraction(bounds[1]), 0)
    assume(high > low)
    expected = (high - low) / (2**num_bits - 1)
    scale = Fraction(float(choose_params(*bounds, QuantSpec(num_bits, signed=signed)).scale))
    assert abs(scale - expected) <= expected * ULP


@given(ranges, st.integers(2, 16))
def test_a_symmetric_step_puts_the_larger_bound_on_the_highest_integer(bounds, num_bits):
    expected = max(-Fraction(bounds[0]), Fraction(bounds[1])) / (2 ** (num_bits - 1) - 1)
    assume(expected > 0)
    scale, zero_point = choose_params(*bounds, QuantSpec(num_bits, symmetric=True))
    assert abs(Fraction(float(scale)) - expected) <= expected * ULP
    assert zero_point == 0


def test_an_unsigned_symmetric_grid_has_its_zero_in_the_middle():
    scale, zero_point = choose_params(-1.0, 1.27, QuantSpec(8, signed=False, symmetric=True))
    assert zero_point == 128
    assert scale == np.float32(0.01)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (0.0, 2.55, 0.01, -128),  # A ReLU.
        (1.0, 2.55, 0.01, -128),  # Widened to hold zero.
        (-2.55, -1.0, 0.01, 127),
        (-1.28, 1.27, 0.01, 0),
        (-1.0, 1.55, 0.01, -28),
    ],
)
def test_ranges_worked_by_hand(low, high, scale, zero_point):
    params = choose_params(low, high, QuantSpec(8))
    assert params.scale == np.float32(scale)
    assert params.zero_point == zero_point


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-38])
def test_a_range_of_no_width_has_step_one(tiny, symmetric):
    params = choose_params(-tiny, tiny, QuantSpec(8, symmetric=symmetric))
    assert params.scale == 1.0
    assert np.isfinite(1 / params.scale)


@pytest.mark.parametrize("num_bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0), (-3e38, 3e38)])
def test_a_step_is_always_positive_and_finite(num_bits, symmetric, low, high):
    scale = choose_params(low, high, QuantSpec(num_bits, symmetric=symmetric)).scale
    assert np.isfinite(scale)
    assert scale > 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_range_of_an_array_is_chosen_alone(symmetric, rng):
    spec = QuantSpec(8, symmetric=symmetric)
    low, high = np.sort(rng.normal(size=(2, 3, 4)), axis=0)
    params = choose_params(low, high, spec)
    assert params.scale.shape == params.zero_point.shape == (3, 4)
    for index in np.ndindex(3, 4):
        alone = choose_params(low[index], high[index], spec)
        assert alone.scale == params.scale[index]
        assert alone.zero_point == params.zero_point[index]


def test_scales_are_float32():
    assert choose_params(-1.0, 1.0, QuantSpec(8)).scale.dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_range_that_is_not_finite_is_an_error(bad):
    for bounds in ((bad, 1.0), (-1.0, bad), ([0.0, bad], [1.0, 1.0])):
        with pytest.raises(ValueError, match=r"must be finite\. Received"):
            choose_params(*bounds, QuantSpec(8))


def test_bounds_in_the_wrong_order_are_an_error():
    with pytest.raises(ValueError, match=r"`low` must not exceed `high`\. Received: low=1"):
        choose_params(1.0, -1.0, QuantSpec(8))
