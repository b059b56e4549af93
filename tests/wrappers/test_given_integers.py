"""Given integers: what an algorithm or another tool chose is what every end computes with."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfquant as tfq

FAMILIES = ["abs_max", "learned_step"]


def network(batch_norm=True):
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, use_bias=not batch_norm, name="conv")(x)
    if batch_norm:
        x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(x)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(4, name="dense")(x))
    if batch_norm:
        norm, rng = model.get_layer("norm"), np.random.default_rng(1)
        shape = norm.gamma.shape
        norm.set_weights([rng.normal(size=shape), *rng.uniform(0.5, 2, (3, *shape))])
    return model


def wrapper_of(q, name):
    return next(x for x in q.layers if getattr(getattr(x, "layer", None), "name", "") == name)


def given(q, rng, bits):
    """Gives random integers to convolution and dense layer; returns them and their steps."""
    found = {}
    top = 2 ** (bits - 1) - 1
    for name in ("conv", "dense"):
        wrapper = wrapper_of(q, name)
        shape = tuple(wrapper.layer.kernel.shape)
        integers = rng.integers(-top, top + 1, shape)
        steps = rng.uniform(0.5, 2.0, shape[-1]).astype("float32") * 0.1 / top
        wrapper.give_integers(integers, steps)
        found[name] = integers, steps
    return found


def quantized(rng, scheme, family, batch_norm=True):
    q = tfq.quantize_model(network(batch_norm), scheme, weight_quantizer=family)
    integers = given(q, rng, int(scheme[1]))
    x = rng.normal(size=(32, 6, 6, 3)).astype("float32")
    return tfq.calibrate(q, x, progress=False, bias_correction=False), integers, x


def integers_in(path, shape):
    """Integers of the constant of `shape` in a file."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (found,) = (
        d["index"]
        for d in interpreter.get_tensor_details()
        if tuple(d["shape"]) == shape and len(d["quantization_parameters"]["scales"]) == shape[0]
    )
    return interpreter.get_tensor(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8", "w8a16", "w8a8_dynamic"])
def test_a_file_holds_the_integers_that_were_given(scheme, family, rng, tmp_path):
    q, integers, _ = quantized(rng, scheme, family, batch_norm=False)
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    conv = np.transpose(integers["conv"][0], (3, 0, 1, 2))
    np.testing.assert_array_equal(integers_in(tmp_path / "m.tflite", conv.shape), conv)
    dense = integers["dense"][0].T
    np.testing.assert_array_equal(integers_in(tmp_path / "m.tflite", dense.shape), dense)


def test_a_batch_norm_changes_signs_and_no_magnitudes(rng, tmp_path):
    q, integers, _ = quantized(rng, "w4a8", "abs_max")
    gamma = wrapper_of(q, "conv").batch_norm.gamma.numpy()
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    conv = np.transpose(integers["conv"][0] * np.sign(gamma), (3, 0, 1, 2))
    np.testing.assert_array_equal(integers_in(tmp_path / "m.tflite", conv.shape), conv)


@pytest.mark.parametrize("family", FAMILIES)
def test_given_integers_outlive_saving(family, rng, tmp_path):
    q, integers, x = quantized(rng, "w4a8", family)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded(x), q(x))
    variable, quantizer = wrapper_of(loaded, "dense").weight_quantizers[0]
    steps = keras.ops.convert_to_numpy(quantizer.steps(variable.value)).reshape(-1)
    np.testing.assert_array_equal(steps, integers["dense"][1])
    np.testing.assert_array_equal(np.round(variable.numpy() / steps), integers["dense"][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_starts_from_given_integers(family, rng):
    q, integers, x = quantized(rng, "w4a8", family, batch_norm=False)
    np.testing.assert_allclose(q(x, training=True), q(x, training=False), atol=0.1)
    q.compile(keras.optimizers.SGD(1e-9), "mse")
    q.fit(x, np.zeros((32, 4), "float32"), verbose=0)
    variable, quantizer = wrapper_of(q, "dense").weight_quantizers[0]
    steps = keras.ops.convert_to_numpy(quantizer.steps(variable.value)).reshape(-1)
    np.testing.assert_allclose(steps, integers["dense"][1], rtol=1e-5)
    np.testing.assert_array_equal(np.round(variable.numpy() / steps), integers["dense"][0])


def test_packing_takes_given_integers(rng):
    q, _, x = quantized(rng, "w4a8", "abs_max")
    np.testing.assert_array_equal(tfq.to_packed(q)(x), q(x))


def test_groups_have_given_steps(rng, tmp_path):
    inputs = keras.Input((64,))
    q = tfq.quantize_model(keras.Model(inputs, layers.Dense(8, name="dense")(inputs)), "w4_g32")
    wrapper = wrapper_of(q, "dense")
    integers = rng.integers(-7, 8, (64, 8))
    steps = np.float32([2.0**-5, 1.5 * 2.0**-4])[:, None] * np.ones((1, 8), np.float32)
    wrapper.give_integers(integers, steps)
    x = rng.normal(size=(4, 64)).astype("float32")
    kernel = integers * np.repeat(steps, 32, axis=0)
    expected = x @ kernel + wrapper.layer.bias.numpy()
    np.testing.assert_allclose(q(x), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="8 significant bits"):
        wrapper.give_integers(integers, steps * np.float32(1.001))


@pytest.mark.parametrize(
    ("integers", "scale", "message"),
    [
        (np.zeros((3, 4)), 1.0, r"shape of the weight, \(5, 4\). Received: shape \(3, 4\)"),
        (np.full((5, 4), 0.5), 1.0, "whole numbers"),
        (np.full((5, 4), np.nan), 1.0, "whole numbers"),
        (np.full((5, 4), 8), 1.0, "from -7 to 7, the grid of 4 bits. Received: 8"),
        (np.full((5, 4), -8), 1.0, "from -7 to 7"),
        (np.zeros((5, 4)), np.ones(3), r"broadcast to \(1, 4\). Received: shape \(3,\)"),
        (np.zeros((5, 4)), 0.0, "positive and finite"),
        (np.zeros((5, 4)), np.inf, "positive and finite"),
    ],
)
def test_integers_that_do_not_fit_are_refused(integers, scale, message):
    inputs = keras.Input((5,))
    x = layers.Dense(4, name="dense")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    wrapper = wrapper_of(tfq.quantize_model(model, "w4"), "dense")
    before = wrapper.layer.kernel.numpy()
    with pytest.raises(ValueError, match=message):
        wrapper.give_integers(integers, scale)
    np.testing.assert_array_equal(wrapper.layer.kernel.numpy(), before)


def test_a_quantizer_that_finds_its_steps_takes_no_integers():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(4, name="dense")(inputs))
    q = tfq.quantize_model(model, "w4", weight_quantizer="dorefa")
    with pytest.raises(ValueError, match=r"'abs_max' and 'learned_step'\. Received: DoReFa"):
        wrapper_of(q, "dense").give_integers(np.zeros((5, 4)), 1.0)


def test_a_layer_without_integers_takes_none():
    inputs = keras.Input((5,))
    q = tfq.quantize_model(keras.Model(inputs, layers.Dense(4, name="dense")(inputs)), "f16")
    with pytest.raises(ValueError, match="index=0, of 1 quantized weights"):
        wrapper_of(q, "dense").give_integers(np.zeros((5, 4)), 1.0)
