"""Which correction a model gets, judged by what plain Keras computes."""

import logging

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


def images(rng, count):
    coarse = rng.uniform(-1, 1, (count, 4, 4, 3))
    return np.kron(coarse, np.ones((1, 4, 4, 1))).astype("float32")


def mobile_network(rng, depth=4):
    """Depthwise blocks as those that go constant in 4 bits when only means are mended."""
    stack = [keras.Input((16, 16, 3)), layers.Conv2D(16, 3, padding="same", use_bias=False)]
    for _ in range(depth):
        stack += [layers.BatchNormalization(), layers.ReLU(max_value=6.0)]
        stack += [layers.DepthwiseConv2D(3, padding="same", use_bias=False)]
        stack += [layers.BatchNormalization(), layers.ReLU(max_value=6.0)]
        stack += [layers.Conv2D(16, 1, use_bias=False)]
    stack += [layers.GlobalAveragePooling2D(), layers.Dense(10), layers.Softmax()]
    model = keras.Sequential(stack)
    model = keras.Model(model.inputs[0], model.outputs[0])
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.uniform(-1, 0.5, norm.beta.shape))
    model(images(rng, 64), training=True)
    return model


def decibels(model, q, x):
    """Of the scores in front of the softmax, which is a layer of its own."""
    logits = keras.Model(model.input, model.layers[-1].input)(x)
    found = keras.Model(q.input, q.layers[-1].input)(x)
    return 10 * np.log10(np.var(logits, axis=0).mean() / np.mean((found - logits) ** 2))


def test_the_best_correction_is_left_in_place(rng):
    model, data, unseen = mobile_network(rng), images(rng, 60), images(rng, 100)
    measured = {}
    for wanted in (False, "mean", "mean_deviation", True):
        q = tfq.quantize_model(model, "w4a8")
        tfq.calibrate(q, data, bias_correction=wanted, progress=False)
        measured[wanted] = decibels(model, q, unseen)
    assert q.correction.method == max(q.correction.sqnr, key=q.correction.sqnr.get)
    assert q.correction.rows == 20
    assert f"biases corrected: {q.correction.method.split('_')[0]}" in str(tfq.summarize(q))
    # A third of the rows is kept out of the correction that is judged: half a decibel for that.
    assert measured[True] > max(measured[False], measured["mean"], measured["mean_deviation"]) - 1.5
    assert measured[True] > measured[False]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_what_makes_outputs_worse_is_not_applied(scheme, rng):
    """The rows that a correction is found on say the opposite of those that judge it."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), layers.Dense(4)])
    model.layers[0].bias.assign(rng.normal(size=16))
    data = rng.normal(size=(30, 8)).astype("float32")
    data[np.arange(30) % 3 != 1] = 40.0  # Rows in between judge.
    q = tfq.quantize_model(model, scheme)
    tfq.calibrate(q, data, progress=False)
    assert q.correction.method == "none"
    plain = tfq.quantize_model(model, scheme)
    tfq.calibrate(plain, data, bias_correction=False, progress=False)
    np.testing.assert_array_equal(q(data), plain(data))


def test_a_single_row_corrects_nothing(rng):
    model = mobile_network(rng, 1)
    q = tfq.calibrate(tfq.quantize_model(model, "w4a8"), images(rng, 1), progress=False)
    assert str(q.correction) == "none"


def test_a_fixed_batch_is_judged_by_the_batches_behind(rng):
    inputs = keras.Input(batch_shape=(8, 6))
    model = keras.Model(inputs, layers.Dense(5)(layers.Dense(7, "relu")(inputs)))
    data = rng.normal(size=(24, 6)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model, "w4a8"), data, progress=False)
    assert q.correction.rows == 16
    q = tfq.calibrate(tfq.quantize_model(model, "w4a8"), data[:8], progress=False)
    assert q.correction.rows == 0


@pytest.mark.parametrize("wanted", ["median", 1.0, None, "True"])
def test_an_unknown_correction_is_refused(wanted, rng):
    model = tfq.quantize_model(mobile_network(rng, 1), "w4a8")
    with pytest.raises(ValueError, match=r"True, False, 'auto', 'mean' or 'mean_deviation'"):
        tfq.calibrate(model, images(rng, 4), bias_correction=wanted)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_lost_outputs_are_a_warning_that_says_what_helps(rng, caplog):
    model, data = mobile_network(rng), images(rng, 40)
    q = tfq.quantize_model(model, "w2a8")
    caplog.clear()
    tfq.calibrate(q, data, progress=False)
    (text,) = warnings_of(caplog)
    assert "hardly those of the float model" in text and "skip" in text and "w8a8" in text
    assert decibels(model, q, images(rng, 100)) < 8
    caplog.clear()
    tfq.calibrate(tfq.quantize_model(model, "w8a8"), data, progress=False)
    assert not warnings_of(caplog)


def test_a_logarithm_of_what_rounds_to_zero_leaves_weights_finite(rng, caplog):
    inputs = keras.Input((8,))
    x = keras.ops.log(layers.Dense(8, "relu")(inputs) + 1e-6)
    model = keras.Model(inputs, layers.Dense(4, name="behind")(x))
    data = rng.normal(size=(64, 8)).astype("float32")
    q = tfq.quantize_model(model, "w8a16")
    caplog.clear()
    tfq.calibrate(q, data, progress=False)
    for weight in q.weights:
        assert np.isfinite(np.asarray(weight)).all(), weight.path
    assert any("'behind'" in text for text in warnings_of(caplog))
    expected = np.asarray(model(data))
    assert 10 * np.log10(expected.var() / np.mean((q(data) - expected) ** 2)) > 25


def test_a_layer_whose_output_is_not_finite_is_named_and_keeps_its_bias(rng, caplog):
    @keras.saving.register_keras_serializable(package="test_choose")
    class Inverse(keras.layers.Layer):
        def call(self, x):
            return 1.0 / x

    inputs = keras.Input((6,))
    x = layers.Dense(8, "sigmoid", name="front")(inputs * 20.0)
    outputs = layers.Dense(3, name="behind")(Inverse()(x))
    model = keras.Model(inputs, outputs)
    recipe = tfq.Recipe("w8a8").skip(Inverse).where("behind", "w8")
    q = tfq.quantize_model(model, recipe)
    caplog.clear()
    tfq.calibrate(q, rng.normal(size=(32, 6)).astype("float32"), progress=False)
    for layer in q.layers:
        for weight in layer.weights:
            assert np.isfinite(np.asarray(weight)).all(), weight.path
    assert any("'behind'" in text and "not finite" in text for text in warnings_of(caplog))
