"""`compare` counts what LiteRT and Keras compute differently."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tfquant as tfq


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 1, (40, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


@pytest.fixture(scope="module")
def quantized(model, images):
    return tfq.calibrate(tfq.quantize_model(model), images, progress=False)


@pytest.fixture(scope="module")
def path(quantized, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "model.tflite"
    tfq.to_tflite(quantized, path, progress=False, verify=False)
    return path


def test_a_quantized_model_and_its_file_agree(quantized, path, images):
    parity = tfq.compare(quantized, path, images)
    assert (parity.differing, parity.largest, parity.equal_predictions) == (0, 0, 1.0)
    assert (parity.values, parity.rows, parity.in_steps) == (400, 40, True)


def test_a_float_model_differs_by_what_the_interpreter_says(model, path, images):
    parity = tfq.compare(model, path, images)
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    steps = []
    for image, real in zip(images, model.predict(images, verbose=0), strict=True):
        scale, zero_point = source["quantization"]
        q = np.clip(np.rint(image / np.float32(scale)) + zero_point, -128, 127)
        interpreter.set_tensor(source["index"], q[None].astype(np.int8))
        interpreter.invoke()
        scale, zero_point = target["quantization"]
        expected = np.rint(real / np.float32(scale)) + zero_point  # The grid's end is one, too.
        steps.append(np.abs(expected - interpreter.get_tensor(target["index"])[0]))
    assert parity.differing == np.count_nonzero(steps) > 0
    assert parity.largest == np.max(steps)


def test_float_outputs_are_compared_as_real_values(model, images, tmp_path):
    path = tmp_path / "float.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    parity = tfq.compare(model, path, images)
    assert not parity.in_steps
    assert parity.largest < 1e-5  # float32 sums in another order


def test_data_come_as_array_list_or_dict(quantized, path, images):
    whole = tfq.compare(quantized, path, images)
    assert tfq.compare(quantized, path, [images]) == whole
    assert tfq.compare(quantized, path, {"image": images, "y": images}) == whole


def test_the_batch_size_changes_nothing(quantized, path, images):
    assert tfq.compare(quantized, path, images, batch_size=7) == tfq.compare(
        quantized, path, images
    )


@pytest.mark.parametrize(
    "data, words",
    [
        (np.zeros((0, 8, 8, 3)), "at least one"),
        (np.zeros((2, 9, 8, 3)), "must have the shape"),
        (np.full((2, 8, 8, 3), "a"), "must hold numbers"),
        (np.full((2, 8, 8, 3), np.nan), r"must be finite in float32\. Received: 384 values"),
        (np.full((2, 8, 8, 3), 1e300), "must be finite in float32"),
        ({"x": np.zeros((2, 8, 8, 3))}, "an array for each input"),
        ([np.zeros((2, 8, 8, 3))] * 2, "one array for each input"),
    ],
)
def test_data_that_do_not_fit_are_refused(quantized, path, data, words):
    with pytest.raises(ValueError, match=words):
        tfq.compare(quantized, path, data, progress=False)


def test_a_file_of_another_model_is_refused(path, images):
    inputs = keras.Input((8, 8, 3))
    other = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))
    with pytest.raises(ValueError, match="same outputs"):
        tfq.compare(other, path, images)


def test_a_model_without_known_inputs_is_refused(path, images):
    with pytest.raises(ValueError, match="functional or sequential"):
        tfq.compare(keras.Sequential([keras.layers.Dense(1)]), path, images)


@keras.saving.register_keras_serializable(package="tfquant_tests")
class Broken(keras.layers.Layer):
    """Returns NaN, or infinity, instead of one value of each row."""

    def __init__(self, value="nan", **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def call(self, x):
        return keras.ops.concatenate([x[:, :1] * 0 + float(self.value), x[:, 1:]], -1)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_no_number_differs_from_all_numbers(model, quantized, path, images, value):
    for own in (model, quantized):
        broken = keras.Model(own.input, Broken(value)(own.output))
        parity = tfq.compare(broken, path, images)
        expected = tfq.compare(own, path, images)
        assert parity.differing >= 40 and parity.differing - expected.differing <= 40
        assert parity.largest == np.inf
        assert value != "nan" or parity.equal_predictions == 0.0


def test_nan_agrees_with_nan_and_with_nothing_else(model, images, tmp_path):
    broken = keras.Model(model.input, Broken()(model.output))
    path = tmp_path / "broken.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(broken).convert())
    parity = tfq.compare(broken, path, images)
    assert parity.largest < 1e-5
    sound = tmp_path / "sound.tflite"
    sound.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    for pair in ((broken, sound), (model, path)):
        apart = tfq.compare(*pair, images)
        assert apart.differing >= 40 and apart.largest == np.inf
        assert apart.equal_predictions == 0.0
