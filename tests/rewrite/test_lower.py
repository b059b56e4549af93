"""The float model that every converter starts from."""

import keras
import numpy as np
import pytest
from keras import layers
from small import randomize

import tfquant as tfq
from tfquant.quantizers import RecordingScope
from tfquant.rewrite.lower import lower


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, use_bias=False, name="depthwise"),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.Conv2DTranspose(4, 2, strides=2, name="transposed"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(5, activation="softmax", name="dense"),
        ]
    )


def shared_dense():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    dense = layers.Dense(4, name="tower")
    return keras.Model([a, b], layers.Add()([layers.ReLU()(dense(a)), dense(b)]))


def skipped():
    x = keras.Input((6,))
    y = layers.Dense(4, name="first")(x)
    y = layers.Dense(4, activation="softplus", name="left")(y)
    return keras.Model(x, layers.Dense(2, name="last")(y))


def nested():
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(5, name="same")], name="inner")
    other = keras.Sequential([keras.Input((5,)), layers.Dense(5, name="same")], name="other")
    x = keras.Input((5,))
    return keras.Model(x, other(layers.ReLU()(inner(inner(x)))))


MODELS = {"cnn": (cnn, ()), "shared": (shared_dense, ()), "nested": (nested, ())}
MODELS["skipped"] = (skipped, ("left",))


def quantized(name, rng, scheme="w8a8"):
    make, skip = MODELS[name]
    model = randomize(make(), rng)
    data = [rng.normal(size=(16, *x.shape[1:])).astype(np.float32) for x in model.inputs]
    model = tfq.quantize_model(model, scheme, skip=skip)
    if tfq.SCHEMES[scheme].static:
        tfq.calibrate(model, data if len(data) > 1 else data[0], progress=False)
    return model, data if len(data) > 1 else data[0]


def real_outputs(model, data):
    """What the model computes with rounded weights and activations that are not rounded."""
    with RecordingScope():
        return np.asarray(model(data))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8", "f16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_float_model_computes_the_real_arithmetic_of_the_quantized_one(name, scheme, rng):
    model, data = quantized(name, rng, scheme)
    got, expected = np.asarray(lower(model).model(data)), real_outputs(model, data)
    # A bias is a multiple of the input's step times the kernel's: 1e-4 of the output's range.
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_lies_on_its_grid(name, rng):
    model, _ = quantized(name, rng)
    found = 0
    for layer in lower(model).model.layers:
        if not hasattr(layer, "kernel") or layer.name == "left":
            continue
        kernel = layer.get_weights()[0]
        shared = {"DepthwiseConv2D": (0, 1), "Conv2DTranspose": (0, 1, 3)}.get(
            type(layer).__name__, tuple(range(kernel.ndim - 1))
        )
        # 8 bits: every value is a multiple of the largest one's 127th part.
        steps = kernel / (np.abs(kernel).max(axis=shared, keepdims=True) / 127)
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        found += 1
    assert found == sum(len(x.weight_quantizers) for x in wrappers(model, calls=True))


def wrappers(model, calls=False):
    """The wrappers of the model, one for each call if asked."""
    found = [x for x in model.layers if isinstance(x, tfq.QuantizeWrapper)]
    return [x for x in found for _ in (x.call_sites if calls else (None,))]


@pytest.mark.parametrize("name", MODELS)
def test_names_are_unique(name, rng):
    model, _ = quantized(name, rng)
    lowered = lower(model)
    names = [layer.name for layer in lowered.model.layers]
    assert len(set(names)) == len(names)
    units = [unit.name for unit in lowered.units]
    assert len(set(units)) == len(units)


def test_each_call_of_a_shared_layer_is_a_unit(rng):
    model, _ = quantized("shared", rng)
    units = [u for u in lower(model).units if "tower" in u.name]
    assert len(units) == 2
    assert units[0].layer is units[1].layer
    assert units[0].output_quantizers != units[1].output_quantizers


def test_no_batch_norm_is_left(rng):
    model, _ = quantized("cnn", rng)
    kinds = {type(layer) for layer in lower(model).model.layers}
    assert layers.BatchNormalization not in kinds
    assert tfq.QuantizeWrapper not in kinds


def test_points_carry_the_grids_that_calibration_set(rng):
    model, _ = quantized("cnn", rng)
    points = {p.name: p for p in lower(model).points}
    wrapper = next(x for x in wrappers(model) if x.layer.name == "conv")
    params = wrapper.output_quantizers[0][0].params()
    assert points["conv"].grid.params.scale == np.float32(params.scale)
    assert points["conv"].grid.params.zero_point == float(params.zero_point)


def test_points_are_what_the_quantized_layers_compute(rng):
    """In the real arithmetic of the recording, layer by layer."""
    model, data = quantized("cnn", rng)
    with RecordingScope() as scope:
        model(data)
    recorded = {id(quantizer): np.asarray(x) for quantizer, x in scope.records}
    lowered = lower(model)
    points = {id(p.tensor): p.tensor for p in lowered.points}
    compared = 0
    for unit in lowered.units:
        for quantizer, tensor in zip(unit.output_quantizers, unit.outputs, strict=True):
            if quantizer is None or id(tensor) not in points:
                continue
            got = np.asarray(keras.Model(lowered.model.input, tensor)(data))
            expected = recorded[id(quantizer)]
            tolerance = 2e-3 * max(np.abs(expected).max(), 1e-3)
            np.testing.assert_allclose(got, expected, atol=tolerance, err_msg=unit.name)
            compared += 1
    assert compared >= 6


def test_float_layers_are_listed_with_their_types(rng):
    model, _ = quantized("skipped", rng)
    assert lower(model).float_layers["left"] == "Dense"


def test_lowering_leaves_the_model_as_it_was(rng):
    model, data = quantized("nested", rng)
    before, weights = np.asarray(model(data)), model.get_weights()
    lower(model)
    np.testing.assert_array_equal(model(data), before)
    for w, old in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(w, old)


def test_lowering_twice_gives_the_same(rng):
    model, data = quantized("cnn", rng)
    np.testing.assert_array_equal(lower(model).model(data), lower(model).model(data))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_grids_is_refused(name, rng):
    make, skip = MODELS[name]
    with pytest.raises(ValueError, match=r"have no grids yet: call tfq\.calibrate"):
        lower(tfq.quantize_model(make(), skip=skip))


def test_a_float_model_is_refused():
    model = keras.Model(x := keras.Input((6,)), layers.Dense(2)(x), name="plain")
    with pytest.raises(ValueError, match=r"from tfq\.quantize_model is expected.*'plain'"):
        lower(model)
