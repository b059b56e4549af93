"""Grids against the smallest and largest activations of a float model built by hand."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq
from tfquant import observers
from tfquant.quantizers import Watch
from tfquant.wrappers import Quantize

module = importlib.import_module("tfquant.calibrate.calibrate")  # Its package has a function so.

FEATURES = 6


def two_dense():
    x = keras.Input((FEATURES,), name="x")
    y = layers.Dense(5, activation="relu", name="first")(x)
    return keras.Model(x, layers.Dense(3, name="second")(y), name="two")


def two_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    return keras.Model([a, b], layers.Add(name="add")([layers.Dense(4, name="left")(a), b]))


def rows(rng, count=40):
    return (rng.normal(size=(count, FEATURES)) * 3).astype(np.float32)


def rounded(kernel):
    step = np.abs(kernel).max(axis=0, keepdims=True) / 127
    return np.rint(kernel / step) * step


def float_activations(model, x):
    """Input, first and second layer, of a plain model whose kernels are rounded beforehand."""
    first, second = (
        layers.Dense(w.units, activation=w.activation)
        for w in (model.get_layer("first"), model.get_layer("second"))
    )
    inputs = keras.Input((FEATURES,))
    y = first(inputs)
    plain = keras.Model(inputs, [inputs, y, second(y)])
    weights = [rounded(w) if w.ndim > 1 else w for w in model.get_weights()]
    plain.set_weights(weights)
    return [np.asarray(v) for v in plain(x)]


def grids(quantized):
    """`(scale, zero_point)` of each quantization point, in order."""
    found = []
    for layer in quantized.layers:
        if isinstance(layer, Quantize):
            found.append(layer.quantizer)
        elif isinstance(layer, tfq.QuantizeWrapper):
            found.extend(q for site in layer.output_quantizers for q in site)
    return [(float(q.params().scale), float(q.params().zero_point)) for q in found]


def expected_grid(x):
    """Of 8 bits, over the values and zero."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255
    return scale, float(np.clip(np.rint(-128 - low / scale), -128, 127))


def calibrate(model, data, **kwargs):
    # Biases are corrected in tests of their own: here ranges are compared to the last digit.
    return tfq.calibrate(model, data, bias_correction=False, progress=False, **kwargs)


def calibrated(data, model=None, **kwargs):
    return calibrate(tfq.quantize_model(model or two_dense()), data, **kwargs)


def test_ranges_are_the_extremes_of_the_float_models_activations(rng):
    model, x = two_dense(), rows(rng)
    expected = [expected_grid(v) for v in float_activations(model, x)]
    got = grids(calibrated(x, model))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 40, 64])
def test_the_batch_size_changes_nothing(batch_size, rng):
    model, x = two_dense(), rows(rng)
    expected = [expected_grid(v) for v in float_activations(model, x)]
    got = grids(calibrated(x, model, batch_size=batch_size))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


FORMS = {
    "list": lambda x: [x],
    "dict": lambda x: {"x": x},
    "generator": lambda x: (x[i : i + 8] for i in range(0, 40, 8)),
    "function": lambda x: lambda: (x[i : i + 8] for i in range(0, 40, 8)),
    "dataset": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(8),
    "unbatched dataset": lambda x: tf.data.Dataset.from_tensor_slices(x),
    "dataset of pairs": lambda x: tf.data.Dataset.from_tensor_slices((x, x[:, 0])).batch(8),
    "float64": lambda x: x.astype(np.float64),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_grids(form, rng):
    model, x = two_dense(), rows(rng)
    expected = [expected_grid(v) for v in float_activations(model, x)]
    np.testing.assert_allclose(grids(calibrated(FORMS[form](x), model)), expected, rtol=1e-5)


def test_steps_stop_early(rng):
    model, x = two_dense(), rows(rng)
    expected = [expected_grid(v) for v in float_activations(model, x[:16])]
    np.testing.assert_allclose(
        grids(calibrated(x, model, batch_size=8, steps=2)), expected, rtol=1e-5
    )


@pytest.mark.parametrize("form", ["list", "dict", "batches of dicts"])
def test_several_inputs_have_a_grid_each(form, rng):
    a, b = (rng.normal(size=(16, 4)).astype(np.float32) * s for s in (1, 9))
    data = {
        "list": [a, b],
        "dict": {"b": b, "a": a},
        "batches of dicts": iter([{"a": a[:8], "b": b[:8]}, {"b": b[8:], "a": a[8:]}]),
    }[form]
    quantized = calibrated(data, two_inputs())
    by_name = {x.name: x.quantizer for x in quantized.layers if isinstance(x, Quantize)}
    for name, values in (("quantize_a", a), ("quantize_b", b)):
        params = by_name[name].params()
        scale, zero_point = expected_grid(values)
        assert float(params.scale) == pytest.approx(scale, rel=1e-6)
        assert float(params.zero_point) == zero_point


def test_activations_are_not_rounded_while_they_are_watched(rng):
    """A second calibration sees what the first one saw."""
    x = rows(rng)
    quantized = calibrated(x)
    before = grids(quantized)
    calibrate(quantized, x)
    assert grids(quantized) == before


def test_calibrating_again_replaces_the_grids(rng):
    x = rows(rng)
    quantized = calibrated(x * 100)
    calibrate(quantized, x)
    assert grids(quantized) == grids(calibrated(x, two_dense_of(quantized)))
    assert not np.allclose(grids(quantized), grids(calibrated(x * 100)), rtol=0.5)


def two_dense_of(quantized):
    """A float model with the weights of a quantized one."""
    model = two_dense()
    wrappers = {
        w.layer.name: w.layer for w in quantized.layers if isinstance(w, tfq.QuantizeWrapper)
    }
    for name in ("first", "second"):
        model.get_layer(name).set_weights(wrappers[name].get_weights())
    return model


def test_predict_uses_the_grids_of_the_last_calibration(rng):
    x = rows(rng)
    quantized = tfq.quantize_model(two_dense())
    uncalibrated = quantized.predict(x, verbose=0)
    calibrate(quantized, x)
    first = quantized.predict(x, verbose=0)
    np.testing.assert_array_equal(first, quantized(x))
    assert (first != uncalibrated).any()
    calibrate(quantized, x / 2)
    np.testing.assert_array_equal(quantized.predict(x, verbose=0), quantized(x))
    assert (quantized.predict(x, verbose=0) != first).any()


def test_evaluate_and_fit_use_the_grids_too(rng):
    x, y = rows(rng), np.zeros((40, 3), np.float32)
    quantized = tfq.quantize_model(two_dense())
    quantized.compile(keras.optimizers.SGD(0.0), "mse")
    quantized.evaluate(x, y, verbose=0)
    with pytest.raises(ValueError, match=r"range of 'quantize_.*' was never set"):
        quantized.fit(x, y, verbose=0)
    calibrate(quantized, x)
    quantized.fit(x, y, verbose=0)
    got = quantized.evaluate(x, y, verbose=0)
    assert got == pytest.approx(float((np.asarray(quantized(x)) ** 2).mean()), rel=1e-5)


def test_the_weights_are_not_changed(rng):
    quantized = tfq.quantize_model(two_dense())
    before = [v.numpy() for v in quantized.trainable_variables]
    calibrate(quantized, rows(rng))
    for v, old in zip(quantized.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), old)


def test_a_batch_norm_keeps_its_statistics(rng):
    model = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(4)])
    model.add(layers.BatchNormalization())
    quantized = tfq.quantize_model(model)
    calibrate(quantized, rows(rng) + 5)
    norm = next(w.batch_norm for w in quantized.layers if isinstance(w, tfq.QuantizeWrapper))
    np.testing.assert_array_equal(norm.moving_mean.numpy(), 0.0)


def test_the_same_model_comes_back(rng):
    quantized = tfq.quantize_model(two_dense())
    assert tfq.calibrate(quantized, rows(rng), progress=False) is quantized


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("calibrated_before", [False, True])
def test_an_interruption_leaves_the_model_unchanged(error, calibrated_before, rng):
    x = rows(rng)
    quantized = tfq.quantize_model(two_dense())
    if calibrated_before:
        calibrate(quantized, x / 3)
    before, outputs, known = grids(quantized), np.asarray(quantized(x)), samples(quantized)

    def interrupted():
        yield x[:8]
        yield x[8:16]
        raise error("stop")

    with pytest.raises(error, match="stop"):
        calibrate(quantized, interrupted())
    assert grids(quantized) == before
    np.testing.assert_array_equal(quantized(x), outputs)
    assert samples(quantized) is known
    calibrate(quantized, x)
    np.testing.assert_allclose(
        grids(quantized), grids(calibrated(x, two_dense_of(quantized))), rtol=1e-6
    )


def samples(model):
    return getattr(model, "calibration_samples", None)


def test_a_bad_batch_leaves_the_model_unchanged(rng):
    x = rows(rng)
    bad = x[8:16].copy()
    bad[3, 2] = np.nan
    quantized = tfq.quantize_model(two_dense())
    before = grids(quantized)
    with pytest.raises(ValueError, match="of batch 1 must be finite"):
        calibrate(quantized, iter([x[:8], bad]))
    assert grids(quantized) == before


def test_an_activation_that_overflows_is_an_error():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False, name="big")])
    model.set_weights([np.full((2, 2), 1e30, np.float32)])
    quantized = tfq.quantize_model(model)
    with pytest.raises(ValueError, match=r"finite"):
        calibrate(quantized, np.full((4, 2), 1e30, np.float32))


@pytest.mark.parametrize("scheme", ["w8", "w8a8_dynamic", "f16"])
def test_a_scheme_without_grids_is_calibrated_to_no_effect(scheme, rng):
    x = rows(rng)
    quantized = tfq.quantize_model(two_dense(), scheme)
    before = np.asarray(quantized(x))
    calibrate(quantized, x)
    np.testing.assert_array_equal(quantized(x), before)


def test_a_float_model_is_refused(rng):
    with pytest.raises(ValueError, match=r"from tfq\.quantize_model is expected.*'two'"):
        tfq.calibrate(two_dense(), rows(rng))


@pytest.mark.parametrize("thing", [None, "model.keras", layers.Dense(2)])
def test_what_is_no_model_is_refused(thing, rng):
    with pytest.raises((TypeError, ValueError), match=r"is expected\. Received"):
        tfq.calibrate(thing, rows(rng))


def test_an_unknown_observer_is_refused_before_data_are_read():
    def data():
        raise AssertionError("read")
        yield

    with pytest.raises(ValueError, match=r"observer must be one of 'min_max'.*'maximum'"):
        tfq.calibrate(tfq.quantize_model(two_dense()), data(), observer="maximum")


@pytest.mark.parametrize("observer", observers.OBSERVERS)
def test_every_observer_gives_ranges_within_what_was_seen(observer, rng):
    model, x = two_dense(), rows(rng, 200)
    quantized = calibrated(x, model, observer=observer)
    for (scale, _), values in zip(grids(quantized), float_activations(model, x), strict=True):
        full, _ = expected_grid(values)
        assert 0.2 * full < scale <= full * (1 + 1e-5)
    expected = np.asarray(model(x))
    assert np.abs(quantized(x) - expected).mean() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    "observer",
    [observers.MovingAverage, lambda: observers.Percentile(90.0)],
    ids=["class", "function"],
)
def test_an_observer_may_be_a_class_or_a_function(observer, rng):
    x = rows(rng, 500)
    (scale, _), *_ = grids(calibrated(x, observer=observer))
    assert scale < grids(calibrated(x))[0][0]


def test_branches_of_a_concatenation_share_one_grid(rng):
    x = keras.Input((FEATURES,))
    a = layers.Dense(4, name="small")(x)
    b = layers.Dense(4, name="large", kernel_initializer=keras.initializers.Constant(3.0))(x)
    y = layers.Concatenate()([a, layers.ReLU()(b)])
    model, data = keras.Model(x, layers.Dense(2)(y)), rows(rng)
    quantized = calibrated(data, model)
    wrappers = {w.layer.name: w for w in quantized.layers if isinstance(w, tfq.QuantizeWrapper)}
    small, large = (wrappers[n].output_quantizers[0][0].params() for n in ("small", "large"))
    assert float(small.scale) == float(large.scale)
    assert float(small.zero_point) == float(large.zero_point)
    both = np.asarray(keras.Model(x, y)(data))
    assert float(small.scale) == pytest.approx(expected_grid(both)[0], rel=0.02)


def test_without_a_progress_bar_nothing_is_printed(rng, capsys):
    calibrated(rows(rng))
    assert capsys.readouterr() == ("", "")


def test_a_batch_of_a_large_model_is_seen_whole_in_parts(rng, monkeypatch):
    model = keras.Sequential([keras.Input((12,)), layers.Dense(9, "relu"), layers.Dense(4)])
    data = rng.normal(size=(32, 12)).astype("float32")
    seen, grids = [], []
    see = Watch.see
    monkeypatch.setattr(Watch, "see", lambda *a: (seen.append(len(a[2])), see(*a))[1])
    for values in (1e9, 5 * 40):
        monkeypatch.setattr(module, "VALUES_AT_ONCE", values)
        q = tfq.quantize_model(model, "w8a8")
        tfq.calibrate(q, data, observer="min_max", bias_correction=False, progress=False)
        grids.append([float(v) for layer in q.layers for v in layer.weights if "scale" in v.path])
    assert set(seen[:3]) == {32} and max(seen[3:]) < 32 and sum(seen[3:]) == sum(seen[:3])
    assert grids[0] == grids[1]


def test_rows_may_be_counted_on_any_axis_of_an_output(rng, tmp_path):
    x = keras.Input((4, 8))
    y = keras.ops.transpose(layers.Dense(3)(x), (1, 0, 2))
    model = keras.Model(x, [y, layers.Dense(2)(x)])
    rows = rng.normal(size=(20, 4, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    assert q.correction.rows == 7  # One in three.
    np.testing.assert_allclose(q(rows)[0], model(rows)[0], atol=0.1)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.end_to_end.differing == 0 and not report.not_compared


def test_what_cancels_has_no_range_of_rounding(rng, tmp_path):
    inputs = keras.Input((3, 8))
    centred = inputs - ops.mean(inputs, 2, keepdims=True)
    model = keras.Model(inputs, [centred, ops.mean(centred, 2)])
    data = rng.uniform(0.1, 1, (32, 3, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    centred, mean = q.predict(data, verbose=0)
    assert np.abs(centred).max() > 0.4 and not np.any(mean)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.end_to_end.differing == 0
