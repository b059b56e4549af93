"""Quantized models put together to one."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


def calibrated(model, rows):
    return tfq.calibrate(tfq.quantize_model(model), rows, progress=False)


def halves(rng):
    """Returns two quantized models, of which one reads what the other returns, and rows."""
    rows = rng.normal(size=(60, 8)).astype("float32")
    x, z = keras.Input((8,)), keras.Input((6,))
    first = keras.Model(x, layers.Dense(6, activation="relu", name="first")(x))
    second = keras.Model(z, layers.Dense(3, name="second")(z))
    return calibrated(first, rows), calibrated(second, first.predict(rows, verbose=0)), rows


def functional(first, second):
    x = keras.Input((8,))
    return keras.Model(x, second(first(x)))


def sequential(first, second):
    return keras.Sequential([keras.Input((8,)), first, second])


def nested(first, second):
    return sequential(keras.Sequential([keras.Input((8,)), first]), second)


def beside_float(first, second):
    x = keras.Input((8,))
    return keras.Model(x, [layers.Dense(2)(first(x)), second(first(x))])


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("compose", [functional, sequential, nested, beside_float])
def test_composed_models_become_a_file_that_computes_them(compose, again, rng, tmp_path):
    first, second, rows = halves(rng)
    model = compose(first, second)
    if again:
        tfq.calibrate(model, rows, progress=False)
    report = tfq.to_tflite(model, tmp_path / "m.tflite", samples=rows, progress=False)
    assert {layer.name for layer in report.layers} >= {"first", "second"}
    assert report.end_to_end.largest < (1 if report.end_to_end.in_steps else 1e-6)
    if compose is not beside_float:
        parity = tfq.compare(model, tmp_path / "m.tflite", rows)
        assert parity.differing == 0 or not parity.in_steps
    expected = model.predict(rows, verbose=0)
    packed = tfq.to_packed(model).predict(rows, verbose=0)
    for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(packed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_a_composition_of_float_models_is_still_an_error(tmp_path):
    x = keras.Input((8,))
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="no quantized layers"):
        tfq.to_tflite(keras.Model(x, inner(x)), tmp_path / "m.tflite", progress=False)
