"""Layers whose kernels quantize what they read when the file runs, against LiteRT itself."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq

LAYERS = {
    "dense": ((3, 16), lambda: layers.Dense(5)),
    "odd_dense": ((15,), lambda: layers.Dense(5)),
    "einsum": ((3, 8), lambda: layers.EinsumDense("abc,cde->abde", (3, 4, 2))),
    "conv": ((4, 4, 6), lambda: layers.Conv2D(5, 3, activation="relu")),
    "points": ((4, 4, 6), lambda: layers.Conv2D(5, 1)),
    "strided_points": ((4, 4, 6), lambda: layers.Conv2D(5, 1, strides=2)),
    "dilated_points": ((4, 4, 6), lambda: layers.Conv2D(5, 1, dilation_rate=2)),
    "groups": ((4, 4, 6), lambda: layers.Conv2D(4, 3, groups=2)),
    "groups_of_points": ((4, 4, 6), lambda: layers.Conv2D(4, 1, groups=2)),
    "conv1d": ((4, 6), lambda: layers.Conv1D(5, 3)),
    "points1d": ((4, 6), lambda: layers.Conv1D(5, 1)),
    "depthwise": ((4, 4, 6), lambda: layers.DepthwiseConv2D(3)),
    "separable": ((4, 4, 6), lambda: layers.SeparableConv2D(5, 3)),
    "transposed": ((4, 4, 6), lambda: layers.Conv2DTranspose(5, 3)),
    "transposed_points": ((4, 4, 6), lambda: layers.Conv2DTranspose(5, 1)),
}


def rows_of(shape, rng):
    """Rows and vectors of different sizes; half are sums of few powers of two: many ties."""
    x = rng.normal(size=(256, *shape)) * rng.uniform(0.1, 3, (256, *shape[:-1], 1))
    x[::2] = np.rint(x[::2] * 16) / 16
    x[5] = 0.0
    return x.astype(np.float32)


@pytest.mark.parametrize("device", ["litert", "litert_reference"])
@pytest.mark.parametrize("num_bits", [8, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_integers_found_at_run_time_are_the_devices(name, num_bits, device, rng, tmp_path):
    shape, make = LAYERS[name]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, make()(inputs))
    scheme = tfq.Scheme("own", num_bits, 8, dynamic=True)
    q = tfq.quantize_model(model, scheme, device=device)
    data = rows_of(shape, rng)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=data, progress=False)
    bound = 3e-6  # Of a sum of products in float; an integer of another kind is a thousand times.
    if name == "separable":  # What its first part rounds, its second may round otherwise.
        compared = [layer.parity for layer in report.layers if layer.parity]
        assert compared
        assert all(parity.largest < bound for parity in compared)
        return
    assert report.end_to_end.rows == len(data)
    assert report.end_to_end.largest < bound


def test_a_layer_said_to_be_exact_that_is_apart_in_float_breaks_its_claim(
    rng, tmp_path, monkeypatch
):
    from tfquant.numerics import run_time

    inputs = keras.Input((4, 4, 6))
    x = layers.Conv2D(6, 3, padding="same")(inputs)
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="last")(layers.Activation("relu")(x)))
    q = tfq.quantize_model(model, "w8a8_dynamic")
    data = rows_of((4, 4, 6), rng)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=data, progress=False)
    assert report.broken_claims == []

    def coarse(low, high, x):
        steps, params = run_time.twice(low, high, x)
        return steps // 2 * 2, params

    monkeypatch.setitem(run_time.ROUNDINGS, "once", coarse)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=data, progress=False)
    assert report.broken_claims
    assert "SAID TO BE EXACT, AND DIFFER" in str(report)


def test_groups_are_not_asked_of_kernels_that_multiply_them_wrongly(rng, tmp_path):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(8)])
    data = rng.normal(size=(32, 64)).astype(np.float32)
    q = tfq.quantize_model(model, "w4a8_g32", device="litert_reference")
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=data, progress=False)
    assert report.end_to_end.largest < 3e-6
    assert "groups" not in (report.layers[0].granularity or "")
