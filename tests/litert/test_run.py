"""`run` gives what the interpreter gives, in real numbers."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tfquant as tfq

DEPLOY = pathlib.Path(__file__).parents[2] / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 1, (5, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="image")
    y = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    y = keras.layers.Flatten(name="flatten")(y)
    return keras.Model(x, keras.layers.Dense(10, name="head")(y))


@pytest.fixture(scope="module")
def quantized(model, images):
    return tfq.calibrate(tfq.quantize_model(model), images, progress=False)


@pytest.mark.parametrize("kind", [None, "uint8", "float32"])
@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_real_numbers_go_in_and_come_out(quantized, images, tmp_path, kind, batch_size):
    path = tmp_path / "model.tflite"
    settings = {"input_type": kind, "batch_size": batch_size, "verify": False, "progress": False}
    tfq.to_tflite(quantized, path, **settings)
    scores = tfq.run(path, images)
    assert scores.dtype == np.float32
    # The quantized model's outputs are what the device computes.
    np.testing.assert_allclose(scores, quantized.predict(images, verbose=0), rtol=0, atol=1e-6)


def test_files_of_other_converters_run(model, images, tmp_path):
    path = tmp_path / "float.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(tfq.run(path, images), expected, rtol=0, atol=1e-5)


def test_several_ends_have_names(tmp_path, images):
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    left = keras.layers.Dense(2, name="left")(a)
    right = keras.layers.Add(name="right")([a, b])
    model = keras.Model([a, b], [left, right])
    rng = np.random.default_rng(0)
    data = {"a": rng.normal(size=(6, 4)), "b": rng.normal(size=(6, 4)) * 9}
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    tfq.to_tflite(q, tmp_path / "two.tflite", verify=False, progress=False)
    expected = q.predict({name: x.astype("float32") for name, x in data.items()}, verbose=0)
    for given in (data, dict(reversed(data.items()))):
        received = tfq.run(tmp_path / "two.tflite", given)
        assert set(received) == {"left", "right"}
        for name, values in zip(("left", "right"), expected, strict=True):
            np.testing.assert_allclose(received[name], values, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"an array for each input of the file: \['a', 'b'\]"):
        tfq.run(tmp_path / "two.tflite", {"a": data["a"]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :4], "rows of the file's inputs"),
        (lambda x: x[0], "rows of the file's inputs"),
        (lambda x: x[:0], "rows of the file's inputs"),
        (lambda x: [x, x], "rows of the file's inputs"),
        (lambda x: x * np.nan, "must be finite"),
        (lambda x: x.astype(str), "must hold numbers"),
    ],
)
def test_data_that_do_not_fit_are_refused(quantized, images, tmp_path, change, words):
    tfq.to_tflite(quantized, tmp_path / "model.tflite", verify=False, progress=False)
    with pytest.raises(ValueError, match=words):
        tfq.run(tmp_path / "model.tflite", change(images))


def test_the_lines_of_the_text_compute_the_same(quantized, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tfq.to_tflite(quantized, "digits.tflite", verify=False, progress=False)
    found = {}
    for lines in re.findall(r"```python\n(.*?)```", DEPLOY.read_text(), re.DOTALL):
        names = {"images": images, "Interpreter": Interpreter}
        exec(lines, names)
        found[lines] = names["scores"][:1]
    first, second = found.values()
    np.testing.assert_array_equal(first, second)
