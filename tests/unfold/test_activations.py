"""Functions of the user's own as the activation of a layer."""

import keras
import numpy as np
import pytest
from keras import activations, layers, ops

import tfquant as tfq


def gelu_tanh(x):
    return activations.gelu(x, approximate=True)


def quick_gelu(x):
    return x * ops.sigmoid(1.702 * x)


def shifted(x):
    return ops.relu(x + 0.5) - 0.5


def rippled(x):
    return ops.relu(ops.sin(x))


# Function -> operators that it consists of in the file.
FUNCTIONS = {
    gelu_tanh: {"GELU"},
    quick_gelu: {"LOGISTIC", "MUL"},
    shifted: {"RELU"},
    layers.LeakyReLU(0.1): {"LEAKY_RELU"},
}


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: getattr(f, "__name__", "layer"))
def test_an_activation_that_consists_of_operations_computes_in_integers(
    function, scheme, rng, tmp_path
):
    keras.utils.set_random_seed(0)
    x = keras.Input((8,))
    y = layers.Dense(8, activation=function, name="own")(x)
    model = keras.Model(x, layers.Dense(4)(layers.Activation(function)(y)))
    data = rng.normal(size=(64, 8)).astype("float32")
    q = tfq.quantize_model(model, scheme)
    tfq.calibrate(q, data, progress=False)
    expected, received = (m.predict(data, verbose=0) for m in (model, q))
    noise = np.mean((received - expected) ** 2) / np.mean(expected**2)
    assert 10 * np.log10(noise) < -28
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert not report.float_operators
    inexact = any(layer.arithmetic != "exact" for layer in report.layers)
    assert inexact or report.end_to_end.differing == 0
    found = {layer.operator for layer in report.layers}
    assert FUNCTIONS[function] <= found | {"RELU"} if function is shifted else found


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [0.0, 0.07, 0.5])
@pytest.mark.parametrize("most", [None, 2.0, 6.0])
def test_every_relu_computes_in_exact_integers(most, threshold, slope, rng, tmp_path):
    x = keras.Input((40,))
    model = keras.Model(x, layers.ReLU(most, slope, threshold)(layers.Dense(40)(x)))
    data = rng.normal(size=(200, 40)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    expected, received = (m.predict(data, verbose=0) for m in (model, q))
    noise = np.mean((received - expected) ** 2)
    assert noise < 1e-2 * np.mean(expected**2)  # A threshold parts what rounding brings together.
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert not report.float_operators and report.end_to_end.differing == 0


def test_an_activation_with_a_part_that_has_no_kernel_stays_whole(rng, tmp_path):
    x = keras.Input((8,))
    y = layers.Dense(8, activation=rippled, name="own")(x)
    model = keras.Model(x, layers.Dense(4)(y))
    q = tfq.quantize_model(model)
    tfq.calibrate(q, rng.normal(size=(64, 8)).astype("float32"), progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert {operator.operator for operator in report.float_operators} == {"SIN", "RELU"}
