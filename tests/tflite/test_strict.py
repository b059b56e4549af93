"""A file that does something else than its model, and one that cannot be compared."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq
import tfquant_cli
from tfquant.configs.elementwise import OutputConfig
from tfquant.numerics import QuantSpec
from tfquant.tflite import convert, verify


def two_inputs(rng):
    """Returns a calibrated model whose inputs have different grids."""
    inputs, shared = [keras.Input((8,), name=name) for name in "ab"], layers.Dense(6)
    model = keras.Model(inputs, layers.Subtract()([shared(x) for x in inputs]))
    rows = [rng.uniform(0, gain, (40, 8)).astype("float32") for gain in (3, 1)]
    return tfq.calibrate(tfq.quantize_model(model), rows, progress=False)


def mistake(monkeypatch):
    """Has the converter take one input for the other."""
    real = convert.anchor

    def wrong(float_file, lowered):
        anchors, *rest = real(float_file, lowered)
        a, b = float_file.file.inputs
        anchors[a], anchors[b] = anchors[b], anchors[a]
        return anchors, *rest

    monkeypatch.setattr(convert, "anchor", wrong)


def test_a_file_that_parts_from_its_model_is_not_written(rng, tmp_path, monkeypatch):
    q = two_inputs(rng)
    mistake(monkeypatch)
    with pytest.raises(RuntimeError, match=r"part at layer 'quantize_[ab]'.*strict=False"):
        tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_file_that_parts_from_its_model_is_written_if_asked_for(rng, tmp_path, monkeypatch):
    q = two_inputs(rng)
    mistake(monkeypatch)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", strict=False, progress=False)
    assert (tmp_path / "m.tflite").exists()
    assert report.end_to_end.share_differing > 0.5


def broken(monkeypatch):
    def run(verifier):
        raise ValueError("axis 1 counts the rows")

    monkeypatch.setattr(verify.Verifier, "end_to_end", run)


def test_what_cannot_be_compared_is_written_and_said(rng, tmp_path, monkeypatch, caplog):
    q = two_inputs(rng)
    tfq.to_tflite(q, tmp_path / "right.tflite", progress=False)
    broken(monkeypatch)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert (tmp_path / "m.tflite").read_bytes() == (tmp_path / "right.tflite").read_bytes()
    assert report.not_compared == "ValueError: axis 1 counts the rows"
    assert report.end_to_end is None and "NOT COMPARED" in str(report)
    assert "axis 1 counts the rows" in caplog.text


def test_the_shell_tells_a_file_that_was_not_compared(rng, tmp_path, monkeypatch, capfd):
    x = keras.Input((8,), name="x")
    keras.Model(x, layers.Dense(3)(x)).save(tmp_path / "m.keras")
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(20, 8)).astype("float32"))
    command = ["quantize", str(tmp_path / "m.keras"), f"--calibration={tmp_path / 'rows.npz'}"]
    assert tfquant_cli.main([*command, f"--output={tmp_path / 'a.tflite'}"]) == 0
    broken(monkeypatch)
    assert tfquant_cli.main([*command, f"--output={tmp_path / 'b.tflite'}"]) == 3
    assert (tmp_path / "b.tflite").exists()
    assert "could not be compared" in capfd.readouterr().err


class Larger(layers.Layer):
    """The larger of two functions, each of a kernel of its own."""

    def call(self, x):
        return ops.maximum(ops.tanh(x), ops.sigmoid(x))


def test_a_layer_of_the_user_s_that_becomes_several_kernels_is_not_called_exact(rng, tmp_path):
    x = keras.Input((8,))
    config = OutputConfig(QuantSpec(8, symmetric=False))
    y = tfq.quantize_annotate_layer(Larger(), config)(
        tfq.quantize_annotate_layer(layers.Dense(8))(x)
    )
    data = rng.normal(size=(64, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_apply(keras.Model(x, y)), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    (layer,) = [x for x in report.layers if x.operator == "MAXIMUM"]
    assert layer.arithmetic == "several kernels" and 0 < layer.parity.largest <= 1
