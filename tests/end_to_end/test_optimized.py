"""From chosen integers to a file that holds them."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfquant as tfq
from tfquant.optimize import AdaRound
from tfquant.wrappers import QuantizeWrapper


def network():
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = short = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv0")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = layers.Add()([layers.Conv2D(8, 1, name="conv1")(x), short])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="dense")(x))


def images(rng, count):
    coarse = rng.normal(size=(count, 4, 4, 3)).astype("float32")
    return np.kron(coarse, np.ones((1, 2, 2, 1), np.float32))


def constants(path):
    """The integers of every constant of several channels in a file."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    details = [
        d
        for d in interpreter.get_tensor_details()
        if d["quantization_parameters"]["scales"].size > 1
    ]
    return [interpreter.get_tensor(d["index"]) for d in details if "int8" in str(d["dtype"])]


@pytest.mark.parametrize("algorithm", ["gptq", AdaRound(steps=40)])
def test_a_file_of_chosen_integers_is_exact_and_closer_to_the_float_model(algorithm, rng, tmp_path):
    model, seen, others = network(), images(rng, 96), images(rng, 64)
    noise = lambda q: float(np.mean((q(others) - model(others)) ** 2))  # noqa: E731
    nearest = tfq.calibrate(tfq.quantize_model(model, "w4a8"), seen, progress=False)
    size = tfq.to_tflite(nearest, tmp_path / "nearest.tflite", progress=False).quantized_bytes
    q = tfq.calibrate(tfq.quantize_model(model, "w4a8"), seen, progress=False)
    tfq.optimize(q, seen, algorithm, seed=1, progress=False)
    assert noise(q) < 0.7 * noise(nearest)

    report = tfq.to_tflite(q, tmp_path / "q.tflite", progress=False)
    assert report.end_to_end.differing == 0
    assert report.quantized_bytes == size

    held = constants(tmp_path / "q.tflite")
    for wrapper in (x for x in q.layers if isinstance(x, QuantizeWrapper)):
        for variable, quantizer in wrapper.weight_quantizers:
            steps = keras.ops.convert_to_numpy(quantizer.params(variable.value).scale)
            chosen = np.rint(variable.numpy() / steps)
            if wrapper.layer.name == "depthwise":
                chosen = chosen.transpose(3, 0, 1, 2).reshape(1, 3, 3, 8)
            else:
                chosen = np.moveaxis(chosen, -1, 0)
            assert any(h.shape == chosen.shape and (h == chosen).all() for h in held), (
                wrapper.layer.name
            )

    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded(others), q(others))
    tfq.to_tflite(loaded, tmp_path / "loaded.tflite", progress=False)
    for ours, again in zip(held, constants(tmp_path / "loaded.tflite"), strict=True):
        np.testing.assert_array_equal(again, ours)
