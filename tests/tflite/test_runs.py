"""Files that LiteRT loads."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfquant as tfq
from tfquant.litert import flatbuffer
from tfquant.tflite import write as writing


def saturating(combine):
    """Returns a model whose branches reach -1 and 1, on grids that are almost powers of two."""
    x = keras.Input((8,))
    kinds = ("identity", "orthogonal")
    branches = [layers.Dense(8, activation="tanh", kernel_initializer=k)(x) for k in kinds]
    return keras.Model(x, combine()(branches))


def recurrent():
    wide = keras.initializers.RandomNormal(stddev=1.0)
    x = keras.Input((3, 8))
    y = layers.GRU(16, kernel_initializer=wide, recurrent_initializer=wide)(x)
    return keras.Model(x, layers.Dense(4)(y))


@pytest.mark.parametrize(
    ("make", "scheme", "gain"),
    [
        (lambda: saturating(layers.Add), "w8a16", 20),
        (lambda: saturating(layers.Subtract), "w8a16", 20),
        (lambda: saturating(layers.Add), "w8a16", 0.1),  # No power of two is near.
        (recurrent, "w8a8", 1),
    ],
)
def test_wide_sums_of_any_scale_run(make, scheme, gain, rng, tmp_path):
    model = make()
    data = (rng.normal(size=(100, *model.input_shape[1:])) * gain).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model, scheme), data, progress=False)
    tfq.to_tflite(q, tmp_path / "m.tflite", input_type="float32", progress=False)
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    interpreter.allocate_tensors()
    expected, received = model.predict(data[:20], verbose=0), []
    for row in data[:20]:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        received.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    noise = np.square(received - expected).mean() / np.square(expected).mean()
    assert noise < (1e-5 if scheme == "w8a16" else 1e-2)


@pytest.mark.parametrize("verify", [True, False])
def test_what_litert_refuses_computes_in_float_and_is_named(
    verify, rng, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(flatbuffer.File, "scale_int16_generally", lambda file: None)
    model = saturating(layers.Add)
    data = (rng.normal(size=(100, 8)) * 20).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model, "w8a16"), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", verify=verify, progress=False)
    assert [op.operator for op in report.float_operators] == ["ADD"]
    assert "add.cc" in report.float_operators[0].reason
    assert "does not run ADD of layer 'add" in caplog.text
    (row,) = [layer for layer in report.layers if layer.operator == "ADD"]
    assert row.arithmetic == "float" and not report.broken_claims
    assert tfq.compare(q, tmp_path / "m.tflite", data).largest <= 1  # Ties.


def test_a_factor_that_xnnpack_refuses_is_one_of_a_float_layer(rng, tmp_path):
    # XNNPACK multiplies sums by 2**-32 at least and 256 at most.
    rows = rng.normal(size=(60, 3)).astype("float32") * np.float32(1e-30)
    x = keras.Input((3,))
    norm = layers.Normalization(mean=[0.0] * 3, variance=[1e-16] * 3)
    model = keras.Model(x, layers.Dense(2)(norm(x)))
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert [op.operator for op in report.float_operators] == ["FULLY_CONNECTED"]
    assert "XNNPACK" in report.float_operators[0].reason
    assert tfq.compare(q, tmp_path / "m.tflite", rows).largest <= 1


def test_the_operator_that_is_refused_is_named_wherever_it_stands(rng, tmp_path, monkeypatch):
    x = keras.Input((8,))
    y = x
    for number in range(6):
        y = layers.Dense(8, name=f"dense_{number}")(y)
    data = rng.normal(size=(20, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(keras.Model(x, y)), data, progress=False)
    real = writing.write

    def broken(*args):
        file = real(*args)
        op = [op for op in file.ops if op.name == "FULLY_CONNECTED"][wrong]
        file.subgraph.operators[op.index].inputs = op.inputs[:1]
        return file

    monkeypatch.setattr(writing, "write", broken)
    for wrong in (0, 3, 5):
        with pytest.raises(RuntimeError, match=f"FULLY_CONNECTED of layer 'dense_{wrong}'"):
            tfq.to_tflite(q, tmp_path / "m.tflite", verify=False, progress=False)
