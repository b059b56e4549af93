"""A comparison that fails, or proves little, says so in words."""

import logging

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.calibrate.samples import sample_rows
from tfquant.report import Parity
from tfquant.report.conversion import LEAST_SQNR

RANDOM = "the comparison ran on RANDOM INPUTS"


def network():
    x = keras.Input((8, 8, 3), name="image")
    y = layers.Conv2D(4, 3, name="conv")(x)
    y = layers.Flatten(name="flatten")(y)
    return keras.Model(x, layers.Dense(10, name="head")(y))


def converted(q, folder, caplog, **settings):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "tfquant"):
        report = tfq.to_tflite(q, folder / "model.tflite", progress=False, **settings)
    return report, [r.getMessage() for r in caplog.records if r.name == "tfquant"]


@pytest.fixture
def images(rng):
    return rng.uniform(100, 200, (64, 8, 8, 3)).astype("float32")


def test_a_comparison_on_data_raises_no_doubts(images, tmp_path, caplog):
    q = tfq.calibrate(tfq.quantize_model(network()), images, progress=False)
    report, warned = converted(q, tmp_path, caplog)
    assert (report.doubts, warned) == ([], [])
    assert "LOOK AT THIS" not in str(report)
    assert list(report.output_sqnr) == ["head"]
    received = report.output_sqnr["head"]
    # The device's noise, from the float model's outputs and the quantized model's: equal here.
    rows = images[:32]
    expected = network_noise(q, rows)
    assert received == pytest.approx(expected, abs=0.01)


def network_noise(q, rows):
    from tfquant.quantizers import RecordingScope

    with RecordingScope(quantize_weights=False, see=lambda *_: None):
        signal = np.asarray(q(rows), np.float64)
    noise = signal - np.asarray(q(rows), np.float64)
    return 10 * np.log10((signal**2).sum() / (noise**2).sum())


@pytest.mark.parametrize("scheme", ["w8a8", "w8"])
def test_random_inputs_are_named_loudly(scheme, images, tmp_path, caplog):
    q = tfq.quantize_model(network(), scheme)
    if q.layers and tfq.SCHEMES[scheme].static:
        tfq.calibrate(q, images, progress=False)
        q.calibration_samples = None  # As of a model from a file.
    report, warned = converted(q, tmp_path, caplog)
    assert any(line.startswith(f"Look at this: {RANDOM}") for line in warned)
    assert f"LOOK AT THIS: {RANDOM}" in str(report)
    report, warned = converted(q, tmp_path, caplog, samples=images)
    assert not [line for line in (*warned, str(report)) if RANDOM in line]


def test_random_inputs_lie_in_the_ranges_of_calibration(images):
    x = keras.Input((5,), dtype="int32", name="tokens")
    y = layers.GlobalAveragePooling1D()(layers.Embedding(50, 8, name="table")(x))
    image = keras.Input((8, 8, 3), name="image")
    z = layers.Dense(4)(layers.Flatten()(image))
    model = keras.Model([x, image], layers.Concatenate()([y, z]))
    data = [np.arange(320).reshape(64, 5) % 50, images]
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    q.calibration_samples = None
    (tokens, pixels), origin = sample_rows(q)
    assert origin == "random inputs"
    assert tokens.min() >= 0 and 40 < tokens.max() < 50
    assert pixels.min() >= 0 and 150 < pixels.max() <= 201


def test_an_output_of_noise_is_named(images, tmp_path, caplog):
    scheme = tfq.Scheme("coarse", 2, 2)
    q = tfq.calibrate(
        tfq.quantize_model(network(), scheme), images[:, :, :, :] - 150.0, progress=False
    )
    report, warned = converted(q, tmp_path, caplog)
    assert report.output_sqnr["head"] < LEAST_SQNR
    words = "output 'head' is mostly quantization noise: "
    assert any(line.startswith(f"Look at this: {words}") for line in warned)
    assert f"LOOK AT THIS: {words}" in str(report)


@pytest.mark.parametrize(
    ("parity", "words"),
    [
        (Parity(100, 51, 3.0, 10, 1.0), "apart in 51% of the output values, by up to 3 steps"),
        (Parity(100, 50, 3.0, 10, 1.0), None),
        (Parity(100, 100, 2.0, 10, 1.0), None),
        (Parity(100, 1, 90.0, 10, 0.89), "predict the same for 89% of rows"),
        (Parity(100, 1, 90.0, 10, 0.9), None),
        (Parity(100, 100, 0.06, 10, None, False), "up to 0.06 times the largest output value"),
        (Parity(100, 100, 0.05, 10, None, False), None),
        (Parity(100, 1, float("nan"), 10, None, False), "up to nan times"),
    ],
)
def test_a_bad_comparison_is_told_in_words(parity, words):
    report = tfq.ConversionReport("x.tflite", 8, 2, [], [], end_to_end=parity, samples="your data")
    assert len(report.doubts) == (words is not None)
    assert words is None or words in report.doubts[0]


@pytest.mark.parametrize(
    ("scheme", "bits", "num_bytes"),
    [
        ("w8a8_dynamic", (8, 8), 108),
        ("w8", (8, None), 108),
        ("w4", (4, None), 54),
        ("f16", (16, None), 216),
    ],
)
def test_every_layer_has_its_bits_bytes_and_noise(scheme, bits, num_bytes, images, tmp_path):
    q = tfq.quantize_model(network(), scheme)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=images, progress=False)
    assert [layer.name for layer in report.layers] == ["conv", "head"]
    for layer in report.layers:
        assert (layer.weight_bits, layer.activation_bits) == bits
        assert layer.weight_sqnr > 10 and layer.output_sqnr > 10
        assert layer.dynamic == (scheme == "w8a8_dynamic")
    assert report.layers[0].weight_bytes == num_bytes
    text = str(report)
    assert ("8/8*" in text) == ("* inputs are quantized when" in text) == layer.dynamic
    why = "its inputs are quantized when the file runs, its outputs are float"
    assert [x.reason == why for x in report.float_operators if x.operator == "CONV_2D"] == (
        [layer.dynamic]
    )
    summary = {layer.name: layer for layer in tfq.summarize(q).layers}
    assert summary["head"].activation_bits == bits[1]
