"""`quantize`: one call, and what an effort buys."""

import logging

import keras
import numpy as np
import pytest
from keras import layers
from test_optimize import calibrated, images, integers, network, noise

import tfquant as tfq
import tfquant_cli
from tfquant.optimize import EFFORTS
from tfquant.wrappers import QuantizeWrapper


def test_the_default_is_what_calibration_does(rng):
    model, x = network(), images(rng)
    q = tfq.quantize(model, x, "w4a8", progress=False)
    np.testing.assert_array_equal(q(x), calibrated(model, x)(x))
    assert q.correction.sqnr


def test_the_fast_one_weighs_nothing(rng):
    q = tfq.quantize(network(), images(rng), "w4a8", effort="fast", progress=False)
    assert q.correction.method == "none" and set(q.correction.sqnr) == {"none"}


def test_the_best_one_comes_closest_on_rows_that_were_not_seen(rng):
    model, seen, others = network(), images(rng, 128), images(rng, 64)
    found = {
        effort: noise(
            model, tfq.quantize(model, seen, "w4a8", effort=effort, progress=False), others
        )
        for effort in EFFORTS
    }
    assert found["best"] < 0.8 * min(found["fast"], found["default"])


def test_the_best_one_reads_a_generator_once(rng):
    model, x = network(), images(rng)
    parts = iter([x[:32], x[32:]])
    q = tfq.quantize(model, parts, "w4a8", effort="best", progress=False)
    expected = tfq.quantize(model, x, "w4a8", effort="best", progress=False)
    for name, found in integers(q).items():
        np.testing.assert_array_equal(found, integers(expected)[name])


def widths(q):
    """Bits of the weights of each layer, by its name."""
    layers_ = [x for x in q.layers if isinstance(x, QuantizeWrapper) and x.weight_quantizers]
    return {x.layer.name: x.weight_quantizers[0][1].spec.num_bits for x in layers_}


@pytest.mark.parametrize("scheme", ["w4a8", "w4", "w4a8_g32", "w2a8"])
def test_the_best_one_spares_the_smallest_layers(scheme, rng):
    x = keras.Input((8,))
    y = layers.Dense(4, name="thin")(x)  # 32 weights of 32 + 256 + 4096 + 640.
    y = layers.Dense(64, name="middle")(y)
    y = layers.Dense(64, name="wide")(y)
    model = keras.Model(x, layers.Dense(10, name="last")(y))
    data = rng.normal(size=(64, 8)).astype("float32")
    q = tfq.quantize(model, data, scheme, effort="best", progress=False)
    bits, plain = widths(q), widths(tfq.quantize_model(model, scheme))
    assert bits["thin"] == 8 and plain["wide"] < 8
    assert {k: v for k, v in bits.items() if k != "thin"} == {
        k: v for k, v in plain.items() if k != "thin"
    }
    own = tfq.Recipe(scheme).where("thin", weight_bits=4)
    assert widths(tfq.quantize(model, data, own, effort="best", progress=False))["thin"] == 4
    left = tfq.quantize(model, data, scheme, effort="best", skip=["thin"], progress=False)
    assert "thin" not in widths(left)


def test_what_is_spared_serves_outputs(rng, tmp_path):
    """A first layer of few inputs, behind which nothing makes up for its rounding."""
    x = keras.Input((4,))
    y = layers.Dense(8, activation="tanh", name="first")(x)
    for _ in range(2):
        y = layers.Dense(40, activation="relu")(y)
    model = keras.Model(x, layers.Dense(5)(y))
    seen, others = (rng.normal(size=(n, 4)).astype("float32") for n in (256, 256))
    best = tfq.quantize(model, seen, "w4a8", effort="best", progress=False)
    named = tfq.Recipe("w4a8").where("first", "w4a8")
    without = tfq.quantize(model, seen, named, effort="best", progress=False)
    assert noise(model, best, others) < 0.85 * noise(model, without, others)
    sizes = [
        tfq.to_tflite(q, tmp_path / "m.tflite", verify=False, progress=False).quantized_bytes
        for q in (best, without)
    ]
    assert sizes[0] <= sizes[1] * 1.02 + 64


@pytest.mark.parametrize("effort", ["default", "best"])
def test_the_algorithms_of_a_recipe_are_the_only_ones(effort, rng):
    model, x = network(), images(rng)
    recipe = tfq.Recipe("w4a8").where("pointwise", "w4a8", algorithm="gptq")
    q = tfq.quantize(model, x, recipe, effort=effort, progress=False)
    plain = integers(calibrated(model, x))
    changed = {name for name, found in integers(q).items() if (found != plain[name]).any()}
    assert changed == {"pointwise"}


def test_weights_alone_need_no_data_but_for_the_best(rng, caplog):
    caplog.set_level(logging.WARNING)
    model, x = network(), images(rng)
    plain = tfq.quantize(model, scheme="w4")
    with pytest.raises(ValueError, match=r"for effort='best'\. Received: None"):
        tfq.quantize(model, scheme="w4", effort="best")
    best = tfq.quantize(model, x, "w4", effort="best", progress=False)
    assert noise(model, best, x) < noise(model, plain, x)


def test_bad_arguments_are_named(rng):
    with pytest.raises(ValueError, match=r"'fast', 'default', 'best'\. Received: 'quick'"):
        tfq.quantize(network(), images(rng), effort="quick")
    with pytest.raises(ValueError, match=r"for grids of activations\. Received: None"):
        tfq.quantize(network())


def test_the_command_knows_the_same_efforts():
    assert tuple(EFFORTS) == tfquant_cli.EFFORTS
