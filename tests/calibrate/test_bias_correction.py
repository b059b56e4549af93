import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(16, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(8),
        ]
    )


@pytest.mark.parametrize("method", ["mean", "mean_deviation"])
def test_channel_means_are_those_of_the_float_model(method, rng):
    model, data = network(), rng.uniform(0, 1, (64, 12, 12, 3)).astype("float32")
    expected = model.predict(data, verbose=0).mean(0)
    q = tfq.quantize_model(model, "w4a8")
    tfq.calibrate(q, data, bias_correction=method, progress=False)
    step = float(q.layers[-1].output_quantizers[0][0].scale.numpy())
    received = q.predict(data, verbose=0).mean(0)
    # Rounding the output leaves a fraction of a step; uncorrected means are many steps away.
    np.testing.assert_allclose(received, expected, atol=0.5 * step)


def linear_chain(kind):
    """Layers without activations, so that moments survive to the output."""
    make = {
        "convolution": lambda: layers.Conv2D(8, 3),
        "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        "transposed": lambda: layers.Conv2DTranspose(6, 3),
        "dense": lambda: layers.Dense(8),
    }[kind.partition(",")[0]]
    stack = [keras.Input((8, 8, 4)), make()]
    if "norm" in kind:
        stack.append(layers.BatchNormalization(scale="unscaled" not in kind))
    model = keras.Sequential(stack)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        low = 0.5 if weight.name in ("gamma", "moving_variance") else -0.5
        weight.assign(rng.uniform(low, low + 1, weight.shape))
    return model


KINDS = ["convolution", "depthwise", "transposed", "dense"]
KINDS += ["convolution, norm", "depthwise, norm", "dense, norm", "convolution, norm, unscaled"]


def integers(q):
    wrapper = next(w for w in q.layers if isinstance(w, tfq.QuantizeWrapper))
    return np.asarray(wrapper.quantize_config.integer_weights(wrapper, None)[0])


@pytest.mark.parametrize(
    ("kind", "weights"),
    [(kind, "abs_max") for kind in KINDS]
    + [("convolution", "learned_step"), ("depthwise", "learned_threshold")],
)
def test_deviations_are_those_of_the_float_model_and_integers_stay(kind, weights, rng):
    model, data = linear_chain(kind), rng.normal(size=(64, 8, 8, 4)).astype("float32")
    q = tfq.quantize_model(model, "w8a16", weight_quantizer=weights)
    tfq.calibrate(q, data, bias_correction=False, progress=False)
    before, plain = integers(q), np.asarray(q(data)).std((0, 1, 2))
    tfq.calibrate(q, data, bias_correction="mean_deviation", progress=False)
    np.testing.assert_array_equal(integers(q), before)
    expected, received = np.asarray(model(data)), np.asarray(q(data))
    expected_std = expected.std((0, 1, 2))
    # The multipliers of kernels for 16 bits have 15 themselves, half of 6e-5.
    np.testing.assert_allclose(received.std((0, 1, 2)), expected_std, rtol=5e-5)
    assert np.abs(plain / expected_std - 1).max() > 1e-4
    step = float(q.layers[-1].output_quantizers[0][0].scale.numpy())
    np.testing.assert_allclose(received.mean((0, 1, 2)), expected.mean((0, 1, 2)), atol=step / 4)


def test_dead_channels_and_those_without_an_input_are_left_alone(rng):
    model = linear_chain("convolution, norm")
    kernel, bias, gamma, *rest = model.get_weights()
    kernel[..., 0] = 0
    gamma[1] = 0
    model.set_weights([kernel, bias, gamma, *rest])
    data = rng.normal(size=(16, 8, 8, 4)).astype("float32")
    q = tfq.quantize_model(model, "w4a8")
    tfq.calibrate(q, data, bias_correction="mean_deviation", progress=False)
    expected, received = np.asarray(model(data)), np.asarray(q(data))
    step = float(q.layers[-1].output_quantizers[0][0].scale.numpy())
    np.testing.assert_allclose(received[..., :2], expected[..., :2], atol=0.51 * step)


def state(q):
    return [np.asarray(v) for v in q.variables]


def reloaded(q, folder):
    q.save(folder / "q.keras")
    return keras.models.load_model(folder / "q.keras")


@pytest.mark.parametrize("method", [True, "mean", "mean_deviation"])
@pytest.mark.parametrize("between", ["nothing", "no correction", "save and load"])
def test_calibrating_again_is_calibrating_once(method, between, tmp_path, rng):
    data = rng.uniform(0, 1, (32, 12, 12, 3)).astype("float32")
    q = tfq.quantize_model(network(), "w4a8")
    tfq.calibrate(q, data, bias_correction=method, progress=False)
    once = state(q)
    if between == "no correction":
        tfq.calibrate(q, data, bias_correction=False, progress=False)
        plain = tfq.quantize_model(network(), "w4a8")
        tfq.calibrate(plain, data, bias_correction=False, progress=False)
        for received, expected in zip(state(q), state(plain), strict=True):
            np.testing.assert_array_equal(received, expected)
    if between == "save and load":
        q = reloaded(q, tmp_path)
    for _ in range(2):
        tfq.calibrate(q, data, bias_correction=method, progress=False)
    for received, expected in zip(state(q), once, strict=True):
        np.testing.assert_array_equal(received, expected)


def test_what_training_moved_is_not_taken_back(rng):
    data = rng.uniform(0, 1, (16, 12, 12, 3)).astype("float32")
    q = tfq.quantize_model(network(), "w4a8")
    tfq.calibrate(q, data, bias_correction="mean", progress=False)
    head = q.layers[-1].layer
    head.bias.assign(head.bias + 3.0)
    trained = head.bias.numpy()
    tfq.calibrate(q, data, bias_correction=False, progress=False)
    np.testing.assert_array_equal(head.bias.numpy(), trained)


@pytest.mark.parametrize("again", [False, True])
def test_an_interruption_leaves_corrections_as_they_were(again, rng):
    data = rng.uniform(0, 1, (16, 12, 12, 3)).astype("float32")
    q = tfq.quantize_model(network(), "w4a8")
    if again:
        tfq.calibrate(q, data, bias_correction="mean_deviation", progress=False)
    before = state(q)

    def interrupted():
        yield data[:8] * 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tfq.calibrate(q, interrupted(), progress=False)
    for received, expected in zip(state(q), before, strict=True):
        np.testing.assert_array_equal(received, expected)
    tfq.calibrate(q, data, bias_correction=False, progress=False)
    np.testing.assert_array_equal(q.layers[-1].layer.bias.numpy(), network().layers[-1].bias)


def test_four_bit_outputs_come_closer_to_the_float_model(rng):
    model, data = network(), rng.uniform(0, 1, (96, 12, 12, 3)).astype("float32")
    seen, unseen = data[:64], data[64:]
    errors = {}
    for corrected in (False, True):
        q = tfq.quantize_model(model, "w4a8")
        tfq.calibrate(q, seen, bias_correction=corrected, progress=False)
        error = q.predict(unseen, verbose=0) - model.predict(unseen, verbose=0)
        errors[corrected] = float((error**2).mean())
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.parametrize("corrected", [False, True, "mean_deviation"])
def test_the_float_model_keeps_its_biases(corrected, rng):
    model, data = network(), rng.uniform(0, 1, (8, 12, 12, 3)).astype("float32")
    before = [w.copy() for w in model.get_weights()]
    q = tfq.quantize_model(model, "w4a8")
    tfq.calibrate(q, data, bias_correction=corrected, progress=False)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
