"""`inspect` says what is in a file, whoever wrote it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tfquant as tfq


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, keras.layers.Dense(10, bias_initializer="ones", name="head")(x))


def write(folder, scheme, skip=()):
    quantized = tfq.quantize_model(network(), scheme, skip=skip)
    data = np.random.default_rng(0).uniform(0, 1, (32, 8, 8, 3)).astype("float32")
    tfq.calibrate(quantized, data, progress=False)
    path = folder / f"{scheme}.tflite"
    tfq.to_tflite(quantized, path, progress=False, verify=False)
    return path


def by_kind(summary):
    return {operator.operator: operator for operator in summary.operators}


def test_an_integer_file_has_no_float_operators(tmp_path):
    path = write(tmp_path, "w8a8")
    summary = tfq.inspect(path)
    assert summary.num_bytes == path.stat().st_size
    assert summary.float_operators == []
    operators = by_kind(summary)
    assert operators["CONV_2D"].weight_type == "INT8"
    assert operators["CONV_2D"].granularity == "per channel (4)"
    assert operators["FULLY_CONNECTED"].granularity == "per channel (10)"
    assert [kind for _, kind, _ in summary.inputs] == ["INT8"]


def test_bytes_of_weights_are_those_of_the_values(tmp_path):
    operators = by_kind(tfq.inspect(write(tmp_path, "w8a8")))
    assert operators["CONV_2D"].weight_bytes == 4 * 27 + 4 * 4  # int8 kernel, int32 bias
    assert operators["FULLY_CONNECTED"].weight_bytes == 10 * 144 + 4 * 10


def test_four_bit_weights_take_half_the_bytes(tmp_path):
    operator = by_kind(tfq.inspect(write(tmp_path, "w4a8")))["FULLY_CONNECTED"]
    assert operator.weight_type == "INT4"
    assert operator.weight_bytes == 10 * 144 // 2 + 4 * 10


def test_a_skipped_layer_is_listed_as_float(tmp_path):
    summary = tfq.inspect(write(tmp_path, "w8a8", skip=["head"]))
    assert [operator.operator for operator in summary.float_operators] == ["FULLY_CONNECTED"]


def test_a_file_of_another_converter_is_read(tmp_path):
    path = tmp_path / "float.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(network()).convert())
    summary = tfq.inspect(path)
    interpreter = Interpreter(str(path))
    names = [detail["name"] for detail in interpreter.get_output_details()]
    assert [name for name, _, _ in summary.outputs] == names
    assert "CONV_2D" in [operator.operator for operator in summary.float_operators]


def test_it_prints_and_becomes_plain_values(tmp_path):
    summary = tfq.inspect(write(tmp_path, "w8a8"))
    assert "per channel (10)" in str(summary)
    assert f"{summary.num_bytes:,} bytes" in str(summary)
    assert summary.to_dict()["operators"][0]["operator"] == "CONV_2D"


@pytest.mark.parametrize("cut", [0, 4, 100, 2000])
def test_a_file_cut_short_is_refused(tmp_path, cut):
    content = write(tmp_path, "w8a8").read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(content[:cut])
    with pytest.raises(ValueError, match=r"A \.tflite file is expected"):
        tfq.inspect(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        tfq.inspect(tmp_path / "none.tflite")


@pytest.mark.parametrize("scheme", [None, "w8", "w8a8_dynamic", "w8a8", "w8a16", "f16"])
def test_every_file_is_printed(scheme, tmp_path):
    if scheme is None:
        content = tf.lite.TFLiteConverter.from_keras_model(network()).convert()
        path = tmp_path / "float.tflite"
        path.write_bytes(content)
    else:
        path = tmp_path / "model.tflite"
        model = tfq.quantize_model(network(), scheme)
        if tfq.SCHEMES[scheme].static:
            data = np.random.default_rng(0).uniform(0, 1, (32, 8, 8, 3)).astype("float32")
            tfq.calibrate(model, data, progress=False)
        tfq.to_tflite(model, path, progress=False, verify=False)
    text = str(tfq.inspect(path))
    assert "CONV_2D" in text and ("zero point" in text) == (scheme in ("w8a8", "w8a16"))
