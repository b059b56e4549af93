import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from tfquant import QuantParams, QuantSpec
from tfquant.numerics import choose_params, dequantize, fake_quantize, group_scale, quantize

# Operations are eager: a first call in a process is slow, the rest are not.
settings.register_profile("eager", deadline=None, max_examples=60)
settings.load_profile("eager")

reals = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)
ranges = st.tuples(reals, reals).map(sorted)
grids = st.builds(
    QuantSpec,
    st.integers(2, 16),
    signed=st.booleans(),
    symmetric=st.booleans(),
    narrow_range=st.booleans(),
)


def numpy_quantize(x, scale, zero_point, spec):
    """The formula, in numpy's integers."""
    steps = np.rint(np.asarray(x, np.float32) / np.float32(scale)).astype(np.int64)
    return np.clip(steps + np.asarray(zero_point, np.int64), spec.qmin, spec.qmax)


def values_around(bounds, spec, rng=None):
    rng = np.random.default_rng(0) if rng is None else rng
    scale, zero_point = choose_params(*bounds, spec)
    inside = rng.uniform(spec.qmin - 3, spec.qmax + 3, 64) - float(zero_point)
    halves = rng.integers(spec.qmin, spec.qmax + 1, 16) - float(zero_point) + 0.5
    return (np.concatenate([inside, halves, [0.0]]) * float(scale)).astype(np.float32)


@given(ranges, grids)
def test_integers_are_those_of_the_formula(bounds, spec):
    params, x = choose_params(*bounds, spec), values_around(bounds, spec)
    q = numpy_quantize(x, *params, spec)
    np.testing.assert_array_equal(np.asarray(quantize(ops.array(x), params, spec)), q)


@given(ranges, grids)
def test_real_values_are_steps_from_the_zero_point(bounds, spec):
    params, x = choose_params(*bounds, spec), values_around(bounds, spec)
    q = numpy_quantize(x, *params, spec)
    expected = (q - int(params.zero_point)).astype(np.float32) * params.scale
    np.testing.assert_array_equal(np.asarray(dequantize(ops.array(q, "float32"), params)), expected)
    np.testing.assert_array_equal(np.asarray(fake_quantize(ops.array(x), params, spec)), expected)


@given(ranges, grids)
def test_quantizing_twice_changes_nothing(bounds, spec):
    params = choose_params(*bounds, spec)
    once = fake_quantize(ops.array(values_around(bounds, spec)), params, spec)
    np.testing.assert_array_equal(np.asarray(fake_quantize(once, params, spec)), np.asarray(once))


@given(ranges, grids)
def test_zero_stays_zero(bounds, spec):
    params = choose_params(*bounds, spec)
    assert float(fake_quantize(ops.zeros((1,)), params, spec)[0]) == 0.0


@given(ranges, grids)
def test_the_gradient_is_one_where_nothing_was_clipped_and_zero_elsewhere(bounds, spec):
    params, x = choose_params(*bounds, spec), values_around(bounds, spec)
    upstream = np.linspace(-2, 2, x.size, dtype=np.float32)
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fake_quantize(variable, params, spec) * upstream)
    steps = np.rint(x / params.scale).astype(np.int64) + int(params.zero_point)
    inside = (spec.qmin <= steps) & (steps <= spec.qmax)
    np.testing.assert_array_equal(
        tape.gradient(loss, variable).numpy(), np.where(inside, upstream, 0)
    )


def test_ties_go_to_the_even_integer():
    params, spec = QuantParams(np.float32(1), 0), QuantSpec(8)
    x = ops.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert quantize(x, params, spec).numpy().tolist() == [-2, -2, 0, 0, 2, 2]


@pytest.mark.parametrize("num_bits", [1, 2, 4, 8, 16])
def test_values_off_the_grid_go_to_its_ends(num_bits):
    spec = QuantSpec(num_bits)
    q = quantize(ops.array([-1e9, 1e9]), QuantParams(np.float32(0.5), 0), spec)
    assert q.numpy().tolist() == [-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1]


def test_each_channel_has_its_own_grid(rng):
    spec = QuantSpec(8, symmetric=True)
    x = rng.normal(size=(5, 3)).astype(np.float32) * [0.1, 1.0, 10.0]
    x = x.astype(np.float32)
    scale = np.array([[0.001, 0.01, 0.1]], np.float32)
    expected = np.stack([numpy_quantize(x[:, i], scale[0, i], 0, spec) for i in range(3)], axis=-1)
    np.testing.assert_array_equal(
        np.asarray(quantize(ops.array(x), QuantParams(scale, 0), spec)), expected
    )


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", ["argument", "constant"])
def test_a_graph_computes_what_eager_execution_does(kind, jit_compile, rng):
    spec, scale, zero_point = QuantSpec(8), tf.constant(0.0317), tf.constant(5.0)
    # Thousands of halves: a product with the inverse of the scale would round some to the other
    # side of a division by it.
    x = tf.constant((rng.integers(-128, 127, 4000) + 0.5).astype(np.float32) * np.float32(0.0317))
    call = lambda x, s, z: fake_quantize(x, QuantParams(s, z), spec)  # noqa: E731
    if kind == "argument":
        got = tf.function(call, jit_compile=jit_compile)(x, scale, zero_point)
    else:
        got = tf.function(lambda x: call(x, scale, zero_point), jit_compile=jit_compile)(x)
    np.testing.assert_array_equal(got.numpy(), call(x, scale, zero_point).numpy())


class TestGroupScale:
    """Steps that both 16-bit formats hold."""

    # Ties to even between two numbers of 8 bits, the ends of the range, and beyond.
    CASES = (0.1, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 7e-5, 1e-9, 65280.0, 65500.0, 1e30)

    @pytest.mark.parametrize("jit_compile", [None, False, True])
    def test_it_rounds_to_bfloat16_within_the_range_of_half_precision(self, jit_compile, rng):
        x = np.concatenate([self.CASES, np.exp(rng.uniform(-9, 11, 500))]).astype(np.float32)
        # Eagerly, in a graph and compiled: XLA leaves out a cast to 16 bits and back.
        call = (
            group_scale
            if jit_compile is None
            else tf.function(group_scale, jit_compile=jit_compile)
        )
        y = call(tf.constant(x)).numpy()
        bounded = np.clip(x, 2.0**-14, 65280.0)
        np.testing.assert_array_equal(y, tf.cast(bounded, tf.bfloat16).numpy().astype(np.float32))
        np.testing.assert_array_equal(y, y.astype(np.float16).astype(np.float32))

    def test_its_gradient_passes_straight_through(self):
        x = tf.Variable([0.1, 0.3])
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(group_scale(x.value()) * [2.0, -1.0])
        np.testing.assert_array_equal(tape.gradient(y, x), [2.0, -1.0])
