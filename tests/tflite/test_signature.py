"""What inputs and outputs of files are called."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfquant as tfq


def runner(path):
    found = Interpreter(str(path)).get_signature_runner()
    return found, sorted(found.get_input_details()), sorted(found.get_output_details())


def test_a_signature_has_the_keys_of_dicts_and_computes(rng, tmp_path):
    inputs = {key: keras.Input((4,), name=key) for key in ("left", "right")}
    x = layers.Subtract()(list(inputs.values()))
    model = keras.Model(inputs, {"score": layers.Dense(3)(x), "away": layers.Dense(2)(x)})
    rows = {key: rng.normal(size=(40, 4)).astype("float32") for key in inputs}
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    path = tmp_path / "m.tflite"
    tfq.to_tflite(q, path, input_type="float32", progress=False)
    run, ins, outs = runner(path)
    assert (ins, outs) == (["left", "right"], ["away", "score"])
    received = run(**{key: values[:1] for key, values in rows.items()})
    expected = model({key: values[:1] for key, values in rows.items()})
    for key, values in received.items():
        np.testing.assert_allclose(values, expected[key], atol=0.1)


@pytest.mark.parametrize("scheme", ["w8a8", "w8"])
def test_a_signature_has_the_names_of_inputs_and_output_layers(scheme, rng, tmp_path):
    x = keras.Input((4,), name="signal")
    y = layers.Dense(8, activation="relu")(x)
    heads = [layers.Dense(3, activation="softmax", name="kind")(y), layers.Dense(1, name="size")(y)]
    model = keras.Model(x, heads)
    rows = rng.normal(size=(40, 4)).astype("float32")
    q = tfq.quantize_model(model, scheme)
    if scheme == "w8a8":
        tfq.calibrate(q, rows, progress=False)
    path = tmp_path / "m.tflite"
    tfq.to_tflite(q, path, samples=rows, progress=False)
    assert runner(path)[1:] == (["signal"], ["kind", "size"])


def test_names_in_a_signature_are_unique(rng, tmp_path):
    x = keras.Input((4,), name="x")
    shared = layers.Dense(3, name="twice")
    y = layers.ReLU(name="t")(x)
    model = keras.Model(x, [y, y, shared(y)])
    rows = rng.normal(size=(40, 4)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    path = tmp_path / "m.tflite"
    report = tfq.to_tflite(q, path, progress=False)
    assert runner(path)[2] == ["t", "t_1", "twice"]
    assert report.end_to_end.differing == 0
