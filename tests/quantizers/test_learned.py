"""Grids that training learns: forward and gradient against the formulas, written out in numpy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq
from tfquant.numerics import PerAxis, PerGroup, QuantParams, QuantSpec, choose_params
from tfquant.quantizers import (
    ACTIVATION_QUANTIZERS,
    WEIGHT_QUANTIZERS,
    DoReFa,
    LearnedClip,
    LearnedStep,
    LearnedStepActivation,
    LearnedThreshold,
    LearnedThresholdActivation,
    MovingAverage,
)

BITS = [2, 4, 8]
SHAPE = (30, 5)


CHANNELS = PerAxis(-1)


def weight_spec(bits, granularity=CHANNELS):
    return QuantSpec(bits, symmetric=True, narrow_range=True, granularity=granularity)


def normal(rng, shape=SHAPE, scale=1.0):
    return rng.normal(size=shape, scale=scale).astype(np.float32)


def fitted(make, w, bits, granularity=CHANNELS):
    quantizer = make(weight_spec(bits, granularity))
    quantizer.build(w.shape)
    quantizer.fit(w)
    return quantizer


def gradients(quantizer, x, upstream, variables):
    """Output, gradient to `x` and to variables."""
    x = tf.Variable(x)
    with tf.GradientTape() as tape:
        y = quantizer.call(x.value(), training=True)
        loss = tf.reduce_sum(y * upstream)
    found = tape.gradient(loss, [x, *[v.value for v in variables]])
    return [np.asarray(y), *[np.asarray(g) for g in found]]


def step_formula(x, s, z, n, p):
    """LSQ: output, where `x` is inside, and dy/ds with the offset held."""
    v = x.astype(np.float64) / s + z
    q = np.clip(np.rint(v), n, p)
    inside = np.rint(v) == q
    return (q - z) * s, inside, q - np.where(inside, v, 0)


@pytest.mark.parametrize("bits", BITS)
def test_lsq_of_weights(bits, rng):
    w, upstream = normal(rng), normal(rng)
    quantizer = fitted(LearnedStep, w, bits)
    s = quantizer.params(w).scale.numpy().astype(np.float64) * 0.8
    quantizer.step.assign(0.8 * np.ones((1, 5)))
    top = 2 ** (bits - 1) - 1
    y, to_w, to_step = gradients(quantizer, w, upstream, [quantizer.step])
    expected, inside, to_s = step_formula(w, s, 0, -top, top)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(to_w, np.where(inside, upstream, 0))
    assert not inside.all()
    g = 1 / np.sqrt(30 * top)
    # With regard to the share of the first step, as plain descent on the step itself would move.
    expected = (upstream * to_s).sum(axis=0, keepdims=True) * g / (s / 0.8)
    np.testing.assert_allclose(to_step, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_lsq_learns_a_step_for_each_group(bits, rng):
    # Weights `[inputs, outputs]`, groups of 8 inputs: as numpy arrays `[groups, 8, outputs]`.
    w, upstream = normal(rng, (24, 5)), normal(rng, (24, 5))
    quantizer = fitted(LearnedStep, w, bits, PerGroup(0, 8))
    assert quantizer.step.shape == (3, 5)
    unit = quantizer.initial_scale.numpy()
    quantizer.step.assign(0.8 * np.ones((3, 5)))
    s = bfloat16(0.8 * unit)[:, None].astype(np.float64)
    top = 2 ** (bits - 1) - 1
    y, to_w, to_step = gradients(quantizer, w, upstream, [quantizer.step])
    expected, inside, to_s = step_formula(w.reshape(3, 8, 5), s, 0, -top, top)
    np.testing.assert_allclose(y, expected.reshape(24, 5), rtol=1e-6)
    np.testing.assert_array_equal(to_w, np.where(inside.reshape(24, 5), upstream, 0))
    assert not inside.all()
    g = 1 / np.sqrt(8 * top)
    expected = (upstream.reshape(3, 8, 5) * to_s).sum(axis=1) * g / unit
    np.testing.assert_allclose(to_step, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", sorted(WEIGHT_QUANTIZERS))
def test_every_family_trains_the_weights_of_groups_on_the_grid_of_inference(family, rng):
    gains = np.array([1, 1 / 4, 1 / 16, 1 / 64], np.float32).reshape(2, 2, 1)
    w = normal(rng, (2, 32, 5)) * np.repeat(gains, 16, axis=1)
    quantizer = fitted(WEIGHT_QUANTIZERS[family], w, 4, PerGroup(-2, 16))
    assert quantizer.scale_shape == (2, 2, 5)
    steps = np.asarray(quantizer.steps(w))
    np.testing.assert_array_equal(steps, bfloat16(steps))
    y = np.asarray(quantizer.call(ops.array(w)))
    trained = np.asarray(quantizer.call(ops.array(w), training=True))
    np.testing.assert_allclose(trained, y, rtol=1e-6)
    q = y.reshape(2, 2, 16, 5) / steps[:, :, None]
    np.testing.assert_allclose(q, np.rint(q), atol=1e-5)
    assert np.abs(q).max() < 7.01
    assert all(len(np.unique(steps[..., channel])) == 4 for channel in range(5))


def bfloat16(x):
    return tf.cast(tf.cast(x, tf.bfloat16), tf.float32).numpy()


@pytest.mark.parametrize("bits", BITS)
def test_plain_descent_moves_the_scale_as_the_paper_does(bits, rng):
    w, upstream = normal(rng), normal(rng)
    quantizer = fitted(LearnedStep, w, bits)
    before = quantizer.params().scale.numpy()
    _, _, to_step = gradients(quantizer, w, upstream, [quantizer.step])
    top, rate = 2 ** (bits - 1) - 1, 1e-4
    _, _, to_s = step_formula(w, before, 0, -top, top)
    to_s = (upstream * to_s).sum(axis=0, keepdims=True) / np.sqrt(30 * top)
    quantizer.step.assign_sub(rate * to_step)
    moved = quantizer.params().scale.numpy() - before
    np.testing.assert_allclose(moved, -rate * to_s, rtol=0.02, atol=2e-7)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("low", [0.0, -0.7])
def test_lsq_plus_of_activations(bits, low, rng):
    x, upstream = normal(rng), normal(rng)
    spec = QuantSpec(bits)
    quantizer = LearnedStepActivation(spec)
    quantizer.build(())
    params = choose_params(low, 1.1, spec)
    quantizer.set_params(params)
    y, to_x, to_step, to_low = gradients(quantizer, x, upstream, [quantizer.step, quantizer.low])
    s, levels = float(params.scale), 2**bits - 1
    z = float(params.zero_point) - spec.qmin
    expected, inside, to_s = step_formula(x, s, z, 0, levels)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_array_equal(to_x, np.where(inside, upstream, 0))
    g = 1 / np.sqrt(5 * levels)
    assert to_step == pytest.approx((upstream * to_s).sum() * g / s, rel=1e-3, abs=1e-3)
    assert to_low == pytest.approx((upstream * ~inside).sum() / s, rel=1e-3, abs=1e-3)


def test_a_moved_offset_stays_on_the_grid():
    quantizer = LearnedStepActivation(QuantSpec(4))
    quantizer.build(())
    quantizer.set_params(choose_params(-1.0, 2.0, QuantSpec(4)))
    quantizer.low.assign(quantizer.low - 0.4)
    params = quantizer.params()
    assert float(params.zero_point) == round(float(params.zero_point))
    y = quantizer.call(ops.zeros((3,)), training=True)
    np.testing.assert_array_equal(y, 0.0)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_tqt_of_weights(bits, power_of_two, rng):
    w, upstream = normal(rng), normal(rng)
    quantizer = fitted(lambda spec: LearnedThreshold(spec, power_of_two=power_of_two), w, bits)
    s = quantizer.params().scale.numpy().astype(np.float64)
    if power_of_two:
        np.testing.assert_array_equal(np.log2(s), np.rint(np.log2(s)))
    y, to_w, to_log = gradients(quantizer, w, upstream, [quantizer.log2_scale])
    top = 2 ** (bits - 1) - 1
    expected, inside, to_s = step_formula(w, s, 0, -top, top)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(to_w, np.where(inside, upstream, 0))
    expected = (upstream * to_s).sum(axis=0, keepdims=True) * s * np.log(2)
    np.testing.assert_allclose(to_log, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_tqt_of_activations_keeps_the_zero_point(bits, rng):
    x, upstream, spec = normal(rng), normal(rng), QuantSpec(bits)
    quantizer = LearnedThresholdActivation(spec)
    quantizer.build(())
    quantizer.set_params(choose_params(-0.4, 1.1, spec))
    _, to_x, to_log = gradients(quantizer, x, upstream, [quantizer.log2_scale])
    params = quantizer.params()
    s, z = float(params.scale), float(params.zero_point)
    v = x / s + z
    q = np.clip(np.rint(v), spec.qmin, spec.qmax)
    inside = np.rint(v) == q
    np.testing.assert_array_equal(to_x, np.where(inside, upstream, 0))
    to_s = np.where(inside, q - v, q - z)
    expected = (upstream * to_s).sum() * s * np.log(2)
    assert to_log == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_powers_of_two_are_exact_in_a_graph(jit_compile):
    quantizer = LearnedThreshold(weight_spec(4), power_of_two=True)
    quantizer.build((3, 1))
    for exponent in (-9.3, -1.0, 2.5):
        quantizer.log2_scale.assign([[exponent]])
        scale = tf.function(lambda: quantizer.params().scale, jit_compile=jit_compile)()
        assert float(scale[0, 0]) == 2.0 ** np.ceil(exponent)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("low", [0.0, -0.7])
def test_pact(bits, low, rng):
    x, upstream, spec = normal(rng), normal(rng), QuantSpec(bits)
    quantizer = LearnedClip(spec)
    quantizer.build(())
    params = choose_params(low, 1.1, spec)
    quantizer.set_params(params)
    s, z = np.float64(params.scale), np.float64(params.zero_point)
    bottom, top = s * (spec.qmin - z), s * (spec.qmax - z)
    y, to_x, to_alpha = gradients(quantizer, x, upstream, [quantizer.alpha])
    q = np.clip(np.rint(x / s) + z, spec.qmin, spec.qmax)
    np.testing.assert_allclose(y, (q - z) * s, atol=1e-5)
    above, below = x > top, x < bottom
    np.testing.assert_array_equal(to_x, np.where(above | below, 0, upstream))
    largest = max(-bottom, top)
    expected = (upstream[above].sum() * top + upstream[below].sum() * bottom) / largest
    assert to_alpha == pytest.approx(expected / largest, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_dorefa(bits, rng):
    w, upstream = normal(rng), normal(rng)
    quantizer = fitted(DoReFa, w, bits)
    y, to_w = gradients(quantizer, w, upstream, [])
    t = np.tanh(w.astype(np.float64))
    scale = np.abs(t).max(axis=0) / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(y, np.rint(t / scale) * scale, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_w, upstream * (1 - t**2), rtol=1e-3, atol=1e-4)


class TestMovingAverage:
    def quantizer(self, low=-1.0, high=2.0):
        quantizer = MovingAverage(QuantSpec(8), momentum=0.75)
        quantizer.build(())
        quantizer.set_params(choose_params(low, high, QuantSpec(8)))
        return quantizer

    def test_the_range_follows_what_training_sees(self, rng):
        quantizer = self.quantizer()
        low, high = (float(x) for x in quantizer.bounds.numpy())
        for _ in range(3):
            x = normal(rng, scale=3.0)
            y = quantizer.call(ops.array(x), training=True)
            low, high = 0.75 * low + 0.25 * x.min(), 0.75 * high + 0.25 * x.max()
            params = choose_params(low, high, QuantSpec(8))
            assert float(quantizer.scale.numpy()) == pytest.approx(float(params.scale), rel=1e-5)
            assert float(quantizer.zero_point.numpy()) == float(params.zero_point)
            s, z = float(params.scale), float(params.zero_point)
            expected = (np.clip(np.rint(x / s) + z, -128, 127) - z) * s
            assert (np.abs(np.asarray(y) - expected) > 0.01 * s).mean() < 0.02  # Ties.

    @pytest.mark.parametrize("bits", [8, 9, 16])
    def test_only_a_wide_grid_keeps_what_rows_of_a_small_batch_reach(self, bits, rng):
        rows = normal(rng, (300, 40))
        rows[::50] *= 10
        quantizer = MovingAverage(QuantSpec(bits, symmetric=True))
        quantizer.build(())
        quantizer.set_params(choose_params(rows.min(), rows.max(), quantizer.spec))
        for row in rows:
            quantizer.call(ops.array(row), training=True)
        noise = np.mean((np.asarray(quantizer.call(ops.array(rows))) - rows) ** 2)
        reached = float(quantizer.bounds.numpy()[1]) > 0.99 * np.abs(rows).max()
        assert reached == (bits > 8)
        if bits == 16:
            assert 10 * np.log10(np.mean(rows**2) / noise) > 75

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_a_wide_grid_takes_in_what_calibration_did_not_see(self, symmetric, rng):
        quantizer = MovingAverage(QuantSpec(16, symmetric=symmetric))
        quantizer.build(())
        quantizer.set_params(choose_params(-1.0, 2.0, quantizer.spec))
        for _ in range(2):
            quantizer.call(ops.array([-7.0, 0.5, 3.0]), training=True)
            quantizer.call(ops.array([0.1, 0.2]), training=True)
        y = np.asarray(quantizer.call(ops.array([-7.0, 3.0, 9.0])))
        np.testing.assert_allclose(y[:2], [-7.0, 3.0], atol=2e-4)
        assert y[2] < 7.1

    def test_inference_leaves_it(self, rng):
        quantizer = self.quantizer()
        before = quantizer.scale.numpy()
        quantizer.call(ops.array(normal(rng, scale=9.0)))
        assert quantizer.scale.numpy() == before

    def test_a_frozen_one_stands_still(self, rng):
        quantizer = self.quantizer()
        quantizer.frozen, before = True, quantizer.scale.numpy()
        quantizer.call(ops.array(normal(rng, scale=9.0)), training=True)
        assert quantizer.scale.numpy() == before

    def test_the_gradient_passes_inside_only(self, rng):
        quantizer, x, upstream = self.quantizer(), normal(rng, scale=2.0), normal(rng)
        quantizer.frozen = True
        _, to_x = gradients(quantizer, x, upstream, [])
        low, high = (float(x) for x in quantizer.bounds.numpy())
        np.testing.assert_array_equal(to_x, np.where((x >= low) & (x <= high), upstream, 0))

    @pytest.mark.parametrize("momentum", [-0.1, 1.0])
    def test_a_wrong_momentum_is_an_error(self, momentum):
        with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\)"):
            MovingAverage(QuantSpec(8), momentum=momentum)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("family", ["abs_max", "learned_step", "learned_threshold"])
def test_training_begins_at_the_grid_of_least_error(family, bits, rng):
    w = normal(rng, (200, 4))
    quantizer = fitted(WEIGHT_QUANTIZERS[family], w, bits)
    reference = fitted(WEIGHT_QUANTIZERS["abs_max"], w, bits)
    np.testing.assert_allclose(quantizer.params(w).scale, reference.params(w).scale, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(set(ACTIVATION_QUANTIZERS)))
@pytest.mark.parametrize("low", [0.0, -2.5])
def test_activations_begin_at_the_calibrated_grid(family, low):
    spec = QuantSpec(8)
    quantizer = ACTIVATION_QUANTIZERS[family](spec)
    quantizer.build(())
    assert not quantizer.calibrated
    expected = choose_params(low, 3.0, spec)
    quantizer.set_params(expected)
    assert quantizer.calibrated
    params = quantizer.params()
    assert float(params.scale) == pytest.approx(float(expected.scale), rel=1e-6)
    assert float(params.zero_point) == float(expected.zero_point)
    with pytest.raises(ValueError, match="must be positive and finite"):
        quantizer.set_params(QuantParams(np.nan, 0))


# Families of weights at few bits, of activations at many; the other way about takes as long again.
TRAINED = [
    pytest.param(scheme, *pair, marks=() if scheme == usual else pytest.mark.long)
    for scheme in ("w8a8", "w4a8")
    for usual, pairs in (
        ("w4a8", [(name, None) for name in WEIGHT_QUANTIZERS]),
        ("w8a8", [(None, name) for name in ACTIVATION_QUANTIZERS]),
    )
    for pair in pairs
]


@pytest.mark.parametrize(("scheme", "weights", "activations"), TRAINED)
def test_every_family_trains_converts_and_is_saved(scheme, weights, activations, rng, tmp_path):
    x = rng.uniform(0, 1, (64, 8, 8, 3)).astype(np.float32)
    labels = (x.mean(axis=(1, 2, 3)) > 0.5).astype(int)
    parts = [layers.Conv2D(6, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *parts, layers.Dense(2)])
    q = tfq.quantize_model(
        model, scheme, weight_quantizer=weights, activation_quantizer=activations
    )
    tfq.calibrate(q, x, progress=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q.compile(keras.optimizers.Adam(1e-3), loss)
    before = {v.path: v.numpy() for v in q.trainable_variables}
    q.fit(x, labels, batch_size=16, epochs=2, verbose=0)
    still = [v.path for v in q.trainable_variables if (v.numpy() == before[v.path]).all()]
    assert not [path for path in still if not path.endswith("low")]  # A ReLU's low end.
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.end_to_end.differing == 0
    q.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), q.predict(x, verbose=0))
