"""Clamps beside what they clamp, and outputs that are one tensor."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import tfquant as tfq

CASES = {
    "itself": lambda t: [t, t],
    "relu and itself": lambda t: [t, layers.ReLU()(t)],
    "relu and a lower one": lambda t: [layers.ReLU()(t), layers.ReLU(max_value=1)(t)],
    "a lower one and relu": lambda t: [layers.ReLU(max_value=1)(t), layers.ReLU()(t)],
    "relu and relu6": lambda t: [layers.ReLU()(t), layers.ReLU(max_value=6)(t)],
    "clip": lambda t: [ops.clip(t, -1, 1)],
    "clip and itself": lambda t: [t, ops.clip(t, -1, 1)],
    "maximum and itself": lambda t: [t, ops.maximum(t, 0.0)],
    "relu of a sum and the sum": lambda t: (lambda s: [s, layers.ReLU()(s)])(t + t),
    "one output three times": lambda t: [layers.ReLU()(t)] * 3,
}


@pytest.mark.parametrize("name", CASES)
def test_a_clamp_and_its_twin_have_a_grid_each(name, rng, tmp_path):
    x = keras.Input((8,))
    t = layers.Dense(6)(x)
    model = keras.Model(x, CASES[name](t))
    rows = rng.normal(size=(64, 8)).astype("float32") * 3
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.end_to_end.in_steps and report.end_to_end.differing == 0
    assert not report.float_operators and not report.lost_layers
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    interpreter.allocate_tensors()
    (source,), targets = interpreter.get_input_details(), interpreter.get_output_details()
    step, zero = source["quantization"]
    expected = keras.tree.flatten(model(rows))
    for number, row in enumerate(rows):
        integers = np.clip(np.rint(row / np.float32(step)) + zero, -128, 127)
        interpreter.set_tensor(source["index"], integers[None].astype(np.int8))
        interpreter.invoke()
        for target, real in zip(targets, expected, strict=True):
            scale, zero_point = target["quantization"]
            received = (interpreter.get_tensor(target["index"])[0].astype(int) - zero_point) * scale
            # A step of the input moves a sum of eight by less than this.
            np.testing.assert_allclose(received, real[number], atol=0.3)


def test_a_grid_that_is_too_narrow_is_seen(rng, tmp_path):
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(6)(x))
    rows = rng.normal(size=(64, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    narrow = tfq.calibrate(tfq.quantize_model(model), rows * 0.25, progress=False)
    tfq.to_tflite(narrow, tmp_path / "narrow.tflite", progress=False)
    assert tfq.compare(q, tmp_path / "m.tflite", rows).differing == 0
    assert tfq.compare(q, tmp_path / "narrow.tflite", rows).largest > 128
