"""Codebooks: few different integers, in files that compute what the model computes."""

import gzip

import keras
import numpy as np
import pytest
from keras import layers
from test_optimize import calibrated, images, integers, network, noise, wrappers

import tfquant as tfq
from tfquant.litert import inspect
from tfquant.rounding.quadratic import error, gptq, to_grid


@pytest.mark.parametrize("shared", ["layer", "channel"])
@pytest.mark.parametrize("levels", ["k_means", "nf", "power_of_two", "apot"])
@pytest.mark.parametrize("num_bits", [2, 4])
def test_a_layer_has_so_many_integers_and_no_more(num_bits, levels, shared, rng):
    x = images(rng)
    q = calibrated(network(), x, "w8a8")
    tfq.optimize(q, x, tfq.Codebook(num_bits, levels, shared), progress=False)
    for name, found in integers(q).items():
        depthwise = isinstance(wrappers(q)[name].layer, layers.DepthwiseConv2D)
        found = found[..., 0] if depthwise else found
        rows = [found] if shared == "layer" else np.moveaxis(found, -1, 0)
        assert all(len(np.unique(row)) <= 2**num_bits for row in rows)
        assert np.abs(found).max() <= 127


def test_levels_that_are_found_serve_better_than_evenly_spaced_ones(rng):
    """Three networks gave .23 to .36 of what 4 bits to the nearest are off."""
    model, seen, others = network(), images(rng, 128), images(rng, 64)
    q = calibrated(model, seen, "w8a8")
    tfq.optimize(q, seen, tfq.Codebook(4), progress=False)
    assert noise(model, q, others) < 0.5 * noise(model, calibrated(model, seen), others)


def test_the_file_is_exact_of_8_bits_and_compresses(rng, tmp_path):
    inputs = keras.Input((64,))
    x = layers.Dense(256, activation="relu", bias_initializer="random_normal")(inputs)
    model = keras.Model(inputs, layers.Dense(64, bias_initializer="random_normal")(x))
    x = rng.normal(size=(64, 64)).astype("float32")
    files, packed = {}, {}
    for name, algorithm in (("nearest", None), ("codebook", tfq.Codebook(2, shared="layer"))):
        q = calibrated(model, x, "w8a8")
        if algorithm:
            tfq.optimize(q, x, algorithm, progress=False)
        report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
        assert report.end_to_end.differing == 0
        files[name] = (tmp_path / "m.tflite").read_bytes()
        kernels = b"".join(k.T.astype(np.int8).tobytes() for k in integers(q).values())
        assert all(k.T.astype(np.int8).tobytes() in files[name] for k in integers(q).values())
        packed[name] = len(gzip.compress(kernels))
    assert {op.operator for op in inspect(tmp_path / "m.tflite").operators} == {"FULLY_CONNECTED"}
    assert abs(len(files["codebook"]) - len(files["nearest"])) <= 64  # Buffers are aligned.
    assert packed["codebook"] < 0.45 * packed["nearest"]


def test_a_vector_of_all_integers_rounds_as_their_bounds_do(rng):
    w, steps = rng.normal(size=(2, 12, 5)), np.full((2, 12, 5), 0.3)
    x = rng.normal(size=(2, 100, 12)) @ rng.normal(size=(2, 12, 12))
    hessian = np.swapaxes(x, 1, 2) @ x
    grid = np.arange(-7.0, 8)
    expected = gptq(w, steps, hessian, (-7, 7))
    np.testing.assert_array_equal(gptq(w, steps, hessian, grid), expected)
    own = np.broadcast_to(grid, (2, 5, 15))
    np.testing.assert_array_equal(gptq(w, steps, hessian, own), expected)
    assert (error(expected, w, steps, hessian) >= 0).all()


def test_each_channel_takes_its_own_levels():
    x, levels = np.array([[1.2, 1.2]]), np.array([[[0.0, 1.0, 9.0], [-5.0, 2.0, 3.0]]])
    np.testing.assert_array_equal(to_grid(x, levels), [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_bits": 8}, "from 1 to 7. Received: 8"),
        ({"num_bits": 1, "levels": "nf"}, "from 2 to 7. Received: 1"),
        ({"levels": "nf4"}, "one of 'k_means', .* Received: 'nf4'"),
        ({"shared": "group"}, "Received: 'group'"),
    ],
)
def test_bad_options_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tfq.Codebook(**kwargs)
