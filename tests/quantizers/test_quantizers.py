import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq
from tfquant import PerAxis, PerGroup, QuantParams, QuantSpec
from tfquant.numerics import choose_params
from tfquant.quantizers import (
    ACTIVATION_QUANTIZERS,
    AbsMax,
    Dynamic,
    Fixed,
    Float16,
    Grid,
    Quantizer,
    RealScope,
    RecordingScope,
    Static,
    from_steps,
    grid_of,
    on_grid,
    steps_of,
)
from tfquant.quantizers.families import activation_quantizer

INT8 = QuantSpec(8)
SHAPE = (3, 4, 5)

# Granularity and the axes that share a scale.
GRANULARITIES = {
    "tensor": (tfq.PerTensor(), (0, 1, 2)),
    "last": (PerAxis(-1), (0, 1)),
    "first": (PerAxis(0), (1, 2)),
    "two": (PerAxis((-2, -1)), (0,)),
    "two_apart": (PerAxis((0, 2)), (1,)),
}


def weight_spec(bits=8, granularity=None):
    granularity = granularity or PerAxis(-1)
    return QuantSpec(bits, symmetric=True, narrow_range=True, granularity=granularity)


def abs_max(bits=8, granularity=None, shape=SHAPE):
    quantizer = AbsMax(weight_spec(bits, granularity))
    quantizer.build(shape)
    return quantizer


def static(scale=0.0317, zero_point=5, spec=INT8):
    quantizer = Static(spec)
    quantizer.build(())
    if scale is not None:
        quantizer.set_params(QuantParams(scale, zero_point))
    return quantizer


def nearest(w, scale, low, high):
    return np.clip(np.rint(w / scale), low, high) * scale


def normal(rng, shape=SHAPE):
    return rng.normal(size=shape).astype(np.float32)


class TestAbsMax:
    @pytest.mark.parametrize("bits", [2, 4, 8])
    @pytest.mark.parametrize("name", GRANULARITIES)
    def test_what_shares_a_scale_has_its_largest_magnitude_on_the_highest_integer(
        self, name, bits, rng
    ):
        granularity, shared = GRANULARITIES[name]
        w, top = normal(rng), 2 ** (bits - 1) - 1
        scale = np.abs(w).max(axis=shared, keepdims=True) / top
        got = np.asarray(abs_max(bits, granularity)(ops.array(w)))
        # Half a unit in the last place of the scale, times 127 steps.
        np.testing.assert_allclose(got, nearest(w, scale, -top, top), rtol=1e-6)
        counts = np.abs(got / scale).max(axis=shared)
        np.testing.assert_allclose(counts, top, rtol=1e-6)

    @pytest.mark.parametrize("name", GRANULARITIES)
    def test_there_is_one_scale_for_each_channel(self, name, rng):
        granularity, shared = GRANULARITIES[name]
        shape = tuple(1 if axis in shared else n for axis, n in enumerate(SHAPE))
        quantizer = abs_max(8, granularity)
        assert quantizer.params(ops.array(normal(rng))).scale.shape == shape
        assert quantizer.clip.shape == shape

    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_a_group_has_the_scale_that_it_has_by_itself(self, axis, rng):
        w = normal(rng, (8, 8, 8))
        whole = abs_max(4, PerGroup(axis, 4), w.shape)
        whole.fit(w)
        y, steps = np.asarray(whole(ops.array(w))), np.asarray(whole.steps(w))
        for group, part in enumerate(np.split(np.moveaxis(w, axis, 0), 2)):
            one = abs_max(4, PerAxis((1, 2)), part.shape)
            one.fit(part)
            scale = tf.cast(tf.cast(one.params(part).scale[0], tf.bfloat16), tf.float32).numpy()
            np.testing.assert_array_equal(np.moveaxis(steps, axis, 0)[group], scale)
            expected = nearest(part, scale, -7, 7)
            got = np.split(np.moveaxis(y, axis, 0), 2)[group]
            np.testing.assert_array_equal(got, expected)

    def test_groups_that_do_not_divide_their_axis_are_an_error(self):
        words = r"`group_size` must divide .* Received: group_size=3, axis 0 of shape \(8, 2\)"
        with pytest.raises(ValueError, match=words):
            abs_max(4, PerGroup(-2, 3), (8, 2))

    def test_a_channel_of_zeros_stays_zero(self):
        w = np.zeros(SHAPE, np.float32)
        w[..., 0] = 1.0
        np.testing.assert_array_equal(np.asarray(abs_max()(ops.array(w))), w)

    @pytest.mark.parametrize("bits", [2, 3, 4])
    @pytest.mark.parametrize("name", GRANULARITIES)
    def test_fitting_narrow_weights_lowers_the_squared_error_of_each_channel(self, name, bits, rng):
        granularity, shared = GRANULARITIES[name]
        w = normal(rng, (30, 40, 6))
        quantizer = abs_max(bits, granularity, w.shape)
        error = lambda: ((np.asarray(quantizer(ops.array(w))) - w) ** 2).sum(axis=shared)  # noqa: E731
        before = error()
        quantizer.fit(w)
        assert (error() <= before * (1 + 1e-6)).all()
        assert error().sum() < 0.95 * before.sum()

    def test_fitting_finds_the_clip_that_was_made_best(self, rng):
        # All values but one on the integers of a range of half the largest magnitude.
        w = np.concatenate([rng.integers(-7, 8, (1000, 1)) * 0.5, [[7.0]]]).astype(np.float32)
        w[0] = 3.5
        quantizer = abs_max(4, PerAxis(-1), w.shape)
        quantizer.fit(w)
        assert quantizer.clip.numpy().item() == pytest.approx(0.5)

    @pytest.mark.parametrize("bits", [8, 16])
    def test_wide_weights_are_not_clipped(self, bits, rng):
        quantizer = abs_max(bits)
        quantizer.fit(normal(rng))
        np.testing.assert_array_equal(quantizer.clip.numpy(), 1.0)

    def test_the_gradient_passes_where_nothing_is_clipped(self, rng):
        quantizer, w = abs_max(4, tfq.PerTensor()), tf.Variable(normal(rng))
        quantizer.clip.assign(np.full((1, 1, 1), 0.5))
        upstream = normal(rng)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(quantizer(w) * upstream)
        steps = np.rint(w.numpy() / (0.5 * np.abs(w.numpy()).max() / 7))
        assert (np.abs(steps) > 7).any()
        expected = np.where(np.abs(steps) <= 7, upstream, 0)
        np.testing.assert_array_equal(tape.gradient(loss, w).numpy(), expected)

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_a_graph_has_the_integers_of_eager_execution(self, jit_compile, rng):
        w, quantizer = ops.array(normal(rng, (30, 40, 5))), abs_max(8, None, (30, 40, 5))
        got = tf.function(quantizer.call, jit_compile=jit_compile)(w)
        np.testing.assert_array_equal(got.numpy(), quantizer.call(w).numpy())

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_the_dtype_of_the_weight_is_kept(self, dtype, rng):
        w = ops.cast(normal(rng), dtype)
        assert abs_max()(w).dtype == dtype

    def test_a_given_scale_takes_the_place_of_its_own(self, rng):
        w, scale = normal(rng), np.full((1, 1, 5), 0.01, np.float32)
        got = abs_max().call(ops.array(w), scale=scale)
        np.testing.assert_array_equal(np.asarray(got), nearest(w, scale, -127, 127))


class TestStatic:
    def test_values_pass_through_until_a_grid_is_set(self, rng):
        x, quantizer = normal(rng), static(None)
        y = quantizer(ops.array(x))
        np.testing.assert_array_equal(np.asarray(y), x)
        assert not quantizer.calibrated
        assert grid_of(y) is None

    def test_values_are_rounded_to_the_grid_that_was_set(self, rng):
        x = normal(rng) * 3
        y = static(0.0317, 5)(ops.array(x))
        s = np.float32(0.0317)
        expected = (np.clip(np.rint(x / s) + 5, -128, 127) - 5).astype(np.float32) * s
        np.testing.assert_array_equal(np.asarray(y), expected)

    def test_the_output_carries_its_grid(self, rng):
        x = normal(rng)
        y = static(0.0317, 5)(ops.array(x))
        assert grid_of(y).spec == INT8
        assert (float(grid_of(y).params.scale), float(grid_of(y).params.zero_point)) == (
            np.float32(0.0317),
            5,
        )
        np.testing.assert_array_equal(steps_of(y), np.rint(np.asarray(y) / np.float32(0.0317)))

    @pytest.mark.parametrize("scale", [0.0, -0.1, np.nan, np.inf])
    def test_a_scale_that_is_no_step_is_an_error_and_changes_nothing(self, scale):
        quantizer = static(0.5, 1)
        with pytest.raises(ValueError, match=r"`scale` must be positive and finite\. Received"):
            quantizer.set_params(QuantParams(scale, 0))
        assert float(quantizer.params().scale) == 0.5
        uncalibrated = static(None)
        with pytest.raises(ValueError, match="positive"):
            uncalibrated.set_params(QuantParams(scale, 0))
        assert not uncalibrated.calibrated

    def test_the_gradient_passes_where_nothing_is_clipped(self, rng):
        x = tf.Variable(normal(rng) * 5)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(static(0.0317, 5)(x))
        steps = np.rint(x.numpy() / np.float32(0.0317)) + 5
        expected = (steps >= -128) & (steps <= 127)
        assert expected.any() and not expected.all()
        np.testing.assert_array_equal(tape.gradient(loss, x).numpy(), expected)

    def test_its_variables_are_not_trained(self):
        assert not static().trainable_variables


class TestFixed:
    def test_the_grid_is_the_given_one(self, rng):
        x = rng.uniform(-0.1, 1.1, SHAPE).astype(np.float32)
        y = Fixed(INT8, 1 / 256, -128)(ops.array(x))
        np.testing.assert_array_equal(np.asarray(y), np.clip(np.rint(x * 256), 0, 255) / 256)
        assert float(grid_of(y).params.zero_point) == -128

    @pytest.mark.parametrize("scale", [0.0317, 0.0, -0.5])
    def test_a_scale_that_graphs_compute_otherwise_is_an_error(self, scale):
        with pytest.raises(ValueError, match=r"`scale` must be a power of two\. Received"):
            Fixed(INT8, scale, 0)

    def test_it_is_calibrated_and_has_no_variables(self):
        quantizer = Fixed(INT8, 0.5, 3)
        quantizer.build(())
        assert quantizer.calibrated
        assert not quantizer.variables

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_a_graph_computes_what_eager_execution_does(self, jit_compile, rng):
        x = (rng.integers(-128, 127, 4000) + 0.5).astype(np.float32) * np.float32(0.0317)
        quantizer = Fixed(INT8, 2.0**-5, 0)
        got = tf.function(lambda x: quantizer.call(x) * 1, jit_compile=jit_compile)(x)
        np.testing.assert_array_equal(got.numpy(), quantizer.call(ops.array(x)).numpy())


class TestFloat16:
    def test_values_are_those_of_half_precision(self, rng):
        w = normal(rng) * 100
        np.testing.assert_array_equal(
            np.asarray(Float16()(ops.array(w))), w.astype(np.float16).astype(np.float32)
        )

    def test_there_is_no_integer_grid(self):
        with pytest.raises(NotImplementedError, match="no scale and zero point"):
            Float16().params()

    def test_the_gradient_passes_straight_through(self, rng):
        w = tf.Variable(normal(rng))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(Float16()(w))
        np.testing.assert_array_equal(tape.gradient(loss, w).numpy(), 1.0)

    def test_values_too_large_for_half_precision_stay_finite(self):
        y = np.asarray(Float16()(ops.array([1e6, -1e6, 65519.0])))
        assert np.isfinite(y).all()


class TestDynamic:
    def formula(self, x):
        """Row by row, in numpy, one number after the other."""
        rows = []
        for row in x:
            low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
            factor = np.float32(255) / (high - low) if high > low else np.float32(1)
            below = np.float32(-128) + low * factor + (np.float32(127) + high * factor) > 0
            zero_point = np.rint(
                np.clip(-128 - low * factor if below else 127 - high * factor, -128, 127)
            )
            q = np.clip(np.rint(row * factor) + zero_point, -128, 127)
            rows.append((q - zero_point) / factor)
        return np.array(rows, np.float32)

    @pytest.mark.parametrize("shape", [(6, 9), (6, 3, 4, 2)])
    def test_each_row_is_rounded_to_its_own_range(self, shape, rng):
        x = normal(rng, shape) * np.geomspace(0.01, 100, 6).reshape(-1, *[1] * (len(shape) - 1))
        x = x.astype(np.float32)
        got = np.asarray(Dynamic(INT8)(ops.array(x)))
        np.testing.assert_allclose(got, self.formula(x), rtol=1e-6)

    def test_each_vector_is_rounded_to_its_own_range(self, rng):
        x = (normal(rng, (2, 3, 9)) * np.geomspace(0.01, 100, 6).reshape(2, 3, 1)).astype("float32")
        got = np.asarray(Dynamic(INT8, by_vector=True)(ops.array(x)))
        np.testing.assert_allclose(got.reshape(6, 9), self.formula(x.reshape(6, 9)), rtol=1e-6)

    def test_rows_do_not_depend_on_each_other(self, rng):
        x, quantizer = normal(rng, (4, 9)), Dynamic(INT8)
        alone = quantizer(ops.array(x[:1]))
        x[1:] *= 1000
        np.testing.assert_array_equal(np.asarray(quantizer(ops.array(x)))[:1], np.asarray(alone))

    @pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
    def test_a_constant_row_stays_what_it_is(self, value):
        x = np.full((2, 4), value, np.float32)
        np.testing.assert_allclose(np.asarray(Dynamic(INT8)(ops.array(x))), x, rtol=1e-6)

    def test_the_next_layer_is_told_no_grid(self, rng):
        assert grid_of(Dynamic(INT8)(ops.array(normal(rng)))) is None

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_a_graph_computes_what_eager_execution_does(self, jit_compile, rng):
        x, quantizer = normal(rng, (64, 500)), Dynamic(INT8)
        got = tf.function(lambda x: quantizer.call(x) * 1, jit_compile=jit_compile)(x)
        np.testing.assert_array_equal(got.numpy(), quantizer.call(ops.array(x)).numpy())


class TestGrid:
    params = QuantParams(np.float32(0.0317), np.float32(5))

    def test_a_plain_tensor_has_no_grid(self):
        assert grid_of(ops.ones((2,))) is None

    def test_a_grid_that_was_noted_is_found(self):
        grid = Grid(self.params, INT8)
        x = ops.ones((2,))
        assert on_grid(x, grid) is x
        assert grid_of(x) is grid

    def test_an_operation_drops_the_grid(self):
        x = on_grid(ops.ones((2,)), Grid(self.params, INT8))
        assert grid_of(x + 1.0) is None

    def test_every_integer_is_found_again(self):
        steps = np.arange(-133, 123)
        x = ops.array(steps.astype(np.float32) * self.params.scale)
        np.testing.assert_array_equal(steps_of(on_grid(x, Grid(self.params, INT8))), steps)

    def test_known_steps_are_not_computed_again(self):
        steps = ops.array([1.0, 2.0])
        assert steps_of(on_grid(ops.ones((2,)), Grid(self.params, INT8, steps))) is steps

    @pytest.mark.parametrize("clamp", [None, (0.0, None), (0.0, 1.0), (None, 1.0), (-0.5, 0.5)])
    def test_output_steps_are_rounded_clipped_and_clamped(self, clamp, rng):
        steps = rng.uniform(-200, 200, 500).astype(np.float32)
        y = from_steps(ops.array(steps), static(0.0317, 5), clamp)
        q = np.clip(np.rint(steps) + 5, -128, 127)
        low, high = clamp or (None, None)
        if low is not None:
            q = np.maximum(q, np.rint(low / 0.0317) + 5)
        if high is not None:
            q = np.minimum(q, np.rint(high / 0.0317) + 5)
        np.testing.assert_array_equal(
            np.asarray(y), (q - 5).astype(np.float32) * np.float32(0.0317)
        )
        np.testing.assert_array_equal(steps_of(y), q - 5)
        assert grid_of(y).spec == INT8


class TestRecordingScope:
    def test_values_pass_and_are_noted_in_order(self, rng):
        first, second, x = static(0.5, 0), static(0.25, 0), ops.array(normal(rng))
        with RecordingScope() as scope:
            y = second(first(x))
        assert [quantizer for quantizer, _ in scope.records] == [first, second]
        np.testing.assert_array_equal(np.asarray(y), np.asarray(x))

    def test_fixed_grids_do_not_round_either(self, rng):
        x = ops.array(normal(rng))
        with RecordingScope():
            y = Fixed(INT8, 0.5, 0)(x)
        np.testing.assert_array_equal(np.asarray(y), np.asarray(x))

    def test_rows_are_not_quantized_at_run_time_inside(self, rng):
        x = ops.array(normal(rng))
        with RecordingScope():
            y = Dynamic(INT8)(x)
        np.testing.assert_array_equal(np.asarray(y), np.asarray(x))

    @pytest.mark.parametrize("make", [abs_max, Float16], ids=["AbsMax", "Float16"])
    def test_weights_are_quantized_unless_told_otherwise(self, make, rng):
        w, quantizer = ops.array(normal(rng)), make()
        with RecordingScope():
            np.testing.assert_array_equal(np.asarray(quantizer.call(w)), quantizer.call(w))
            assert (np.asarray(quantizer.call(w)) != np.asarray(w)).any()
        with RecordingScope(quantize_weights=False):
            np.testing.assert_array_equal(np.asarray(quantizer.call(w)), np.asarray(w))

    def test_scopes_nest(self, rng):
        quantizer, x = static(), ops.array(normal(rng))
        with RecordingScope() as outer:
            quantizer(x)
            with RecordingScope() as inner:
                quantizer(x)
            assert RecordingScope.current() is outer
            quantizer(x)
        assert (len(outer.records), len(inner.records)) == (2, 1)
        assert RecordingScope.current() is None

    def test_an_error_ends_the_scope(self):
        with RecordingScope() as outer:
            with pytest.raises(KeyboardInterrupt), RecordingScope():
                raise KeyboardInterrupt
            assert RecordingScope.current() is outer
        assert RecordingScope.current() is None

    def test_another_thread_is_outside(self):
        seen = []
        with RecordingScope():
            thread = threading.Thread(target=lambda: seen.append(RecordingScope.current()))
            thread.start()
            thread.join()
        assert seen == [None]


@pytest.mark.parametrize(
    "make",
    [
        lambda: static(0.0317, 5),
        lambda: static(0.0317, 5, QuantSpec(16, symmetric=True)),
        lambda: Static(INT8, group="branches"),
        lambda: Fixed(INT8, 1 / 256, -128),
        lambda: Dynamic(INT8, by_vector=True, rounding="twice"),
        lambda: AbsMax(weight_spec(4)),
        lambda: Float16(),
    ],
)
def test_settings_survive_serialization(make):
    quantizer = make()
    described = keras.saving.serialize_keras_object(quantizer)
    again = keras.saving.deserialize_keras_object(described)
    assert type(again) is type(quantizer)
    assert again.get_config() == quantizer.get_config()
    assert again.spec == quantizer.spec


@keras.saving.register_keras_serializable(package="tfquant_tests")
class Rounded(layers.Layer):
    """A layer that owns a quantizer."""

    def __init__(self, quantizer, **kwargs):
        super().__init__(**kwargs)
        self.quantizer = quantizer

    def build(self, shape):
        if not self.quantizer.built:
            self.quantizer.build(shape)

    def call(self, x):
        return self.quantizer.call(x)

    def get_config(self):
        return {**super().get_config(), "quantizer": self.quantizer}

    @classmethod
    def from_config(cls, config):
        config["quantizer"] = keras.saving.deserialize_keras_object(config["quantizer"])
        return cls(**config)


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_loaded_grid_is_the_saved_one(calibrated, rng, tmp_path):
    model = keras.Sequential([keras.Input((4,)), Rounded(Static(INT8))])
    if calibrated:
        model.layers[0].quantizer.set_params(QuantParams(np.float32(0.0317), 5))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].quantizer.calibrated is calibrated
    x = normal(rng, (8, 4))
    np.testing.assert_array_equal(loaded(x), model(x))
    assert (np.asarray(model(x)) != x).any() == calibrated


def test_weights_loaded_into_a_model_bring_their_grids(rng, tmp_path):
    make = lambda: keras.Sequential([keras.Input((4,)), Rounded(Static(INT8))])  # noqa: E731
    model, other, x = make(), make(), normal(rng, (8, 4))
    model.layers[0].quantizer.set_params(QuantParams(np.float32(0.0317), 5))
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(other(x), model(x))


def test_a_quantizer_without_its_formula_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Quantizer(INT8)


class TestRealScope:
    @pytest.mark.parametrize("name", sorted(ACTIVATION_QUANTIZERS))
    @pytest.mark.parametrize("num_bits", [4, 8, 16])
    def test_values_are_those_of_inference_to_within_a_tie(self, name, num_bits, rng):
        quantizer = activation_quantizer(name, Static(QuantSpec(num_bits)))
        quantizer.build(())
        quantizer.set_params(choose_params(-1.0, 3.0, quantizer.spec))
        x = rng.normal(size=(64, 7)).astype("float32")
        with RealScope():
            y = quantizer(x)
        assert grid_of(y) is None
        expected = np.asarray(quantizer.call(keras.ops.convert_to_tensor(x)))
        np.testing.assert_allclose(y, expected, atol=1e-5)

    def test_what_is_not_calibrated_is_let_through(self, rng):
        quantizer = Static(QuantSpec(8))
        quantizer.build(())
        x = keras.ops.convert_to_tensor(rng.normal(size=(3, 4)).astype("float32"))
        with RealScope():
            np.testing.assert_array_equal(quantizer.call(x), x)
