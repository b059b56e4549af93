"""Branches of a concatenation that differ a thousandfold."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


def decibels(expected, received):
    noise = np.square(np.asarray(expected, np.float64) - received).sum()
    return 10 * np.log10(np.square(np.asarray(expected, np.float64)).sum() / noise)


def scaled(layer, gain):
    layer.set_weights([w * gain for w in layer.get_weights()])


BRANCHES = {
    "linear": lambda y: layers.Dense(3)(y),
    "relu": lambda y: layers.Dense(3, activation="relu", name="small")(y),
    "batch norm": lambda y: layers.BatchNormalization()(layers.Dense(3)(y)),
    "sigmoid": lambda y: layers.Dense(3, activation="sigmoid")(y),
}


def joined(branch, image, gain=1000.0):
    """Returns a model whose last kernel makes as much of both branches."""
    x = keras.Input((4, 4, 8) if image else (8,))
    large = layers.Conv2D(6, 1, name="large") if image else layers.Dense(6, name="large")
    last = layers.Conv2D(4, 3, name="last") if image else layers.Dense(4, name="last")
    model = keras.Model(x, last(layers.Concatenate()([large(x), BRANCHES[branch](x)])))
    scaled(large, gain)
    kernel, bias = last.get_weights()
    kernel[..., :6, :] /= gain
    last.set_weights([kernel, bias])
    return model


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_of_a_thousandth_keeps_its_levels(branch, image, rng, tmp_path):
    model = joined(branch, image)
    rows = rng.normal(size=(64, *model.input_shape[1:])).astype("float32")
    q = tfq.quantize_model(model)
    float_weights = [w.copy() for w in model.get_weights()]
    tfq.calibrate(q, rows, progress=False)
    assert decibels(model(rows), np.asarray(q(rows))) > 30
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert not report.swallowed and report.end_to_end.differing == 0
    for before, now in zip(float_weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, now)  # The user's model is nobody's to scale.


def test_what_is_scaled_computes_the_same_bit_by_bit(rng):
    model = joined("relu", image=False)
    rows = rng.normal(size=(64, 8)).astype("float32")
    q = tfq.quantize_model(model, "w8a8")
    tfq.calibrate(q, rows, bias_correction=False, progress=False)
    weights = {w.path.split("/")[-2]: w.numpy() for w in q.weights if w.path.endswith("kernel")}
    ratio = weights["small"] / model.get_layer("small").kernel.numpy()
    assert len(np.unique(ratio)) == 1 and ratio.flat[0] > 16
    assert np.log2(ratio.flat[0]) == np.rint(np.log2(ratio.flat[0]))
    back = weights["last"] / model.get_layer("last").kernel.numpy()
    np.testing.assert_array_equal(back[:6], np.ones((6, 4)))
    np.testing.assert_array_equal(back[6:], np.full((3, 4), 1 / ratio.flat[0]))


def test_calibrating_again_changes_nothing(rng):
    model = joined("linear", image=False)
    rows = rng.normal(size=(64, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    once = [w.numpy() for w in q.weights]
    tfq.calibrate(q, rows, progress=False)
    for before, now in zip(once, q.weights, strict=True):
        np.testing.assert_array_equal(before, now.numpy())


def test_an_interrupted_calibration_leaves_kernels_as_they_were(rng):
    q = tfq.quantize_model(joined("linear", image=False))
    before = [w.numpy() for w in q.weights]

    def batches():
        yield rng.normal(size=(8, 8)).astype("float32")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tfq.calibrate(q, batches(), progress=False)
    for value, now in zip(before, q.weights, strict=True):
        np.testing.assert_array_equal(value, now.numpy())


@pytest.mark.parametrize("other", ["output", "reader", "near"])
def test_branches_that_others_read_or_that_are_near_stay(other, rng):
    x = keras.Input((8,))
    large, small = layers.Dense(6, name="large")(x), layers.Dense(3, name="small")(x)
    y = layers.Dense(4, name="last")(layers.Concatenate()([large, small]))
    more = {"output": [large, small], "reader": [layers.ReLU()(large), layers.ReLU()(small)]}
    model = keras.Model(x, [y, *more.get(other, [])])
    scaled(model.get_layer("large"), 2.0 if other == "near" else 1000.0)
    rows = rng.normal(size=(64, 8)).astype("float32")
    q = tfq.quantize_model(model)
    tfq.calibrate(q, rows, bias_correction=False, progress=False)
    for wrapper in q.layers:
        layer = getattr(wrapper, "layer", None)
        if isinstance(layer, layers.Dense):
            kernel = model.get_layer(layer.name).kernel
            np.testing.assert_array_equal(layer.kernel.numpy(), kernel.numpy())
