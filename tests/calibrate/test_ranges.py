"""Whether rare values are kept or clipped, told by what plain Keras and arithmetic compute."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.observers import Auto
from tfquant.wrappers import Quantize


def find_peak():
    """Returns the largest value of a signal, and the same halved by a layer behind."""
    inputs = keras.Input((256, 1))
    x = layers.Conv1D(1, 1, use_bias=False, activation="relu", name="first")(inputs)
    x = layers.GlobalMaxPooling1D()(x)
    model = keras.Model(inputs, layers.Dense(1, use_bias=False, name="second")(x))
    model.set_weights([np.ones((1, 1, 1), np.float32), np.full((1, 1), 0.5, np.float32)])
    return model


def signals(rng, count, every):
    """Noise, with a peak of about 5 in one row of `every`."""
    x = rng.normal(0, 0.05, (count, 256, 1)).astype("float32")
    events = np.arange(count) % every == 0
    x[events, rng.integers(0, 256, events.sum()), 0] = rng.uniform(4, 6, events.sum())
    return x, events


def test_rare_peaks_are_kept_where_outputs_are_made_of_them(rng):
    model, (data, _) = find_peak(), signals(rng, 200, 100)
    x, events = signals(rng, 100, 2)
    answers = {}
    for observer in ("auto", "percentile"):
        q = tfq.quantize_model(model, "w8a8")
        tfq.calibrate(q, data, observer=observer, progress=False)
        answers[observer] = np.asarray(q(x))[events, 0]
    truth = x[events].max(axis=(1, 2)) / 2
    # Peaks are 0.004% of all values: clipping them is what the percentile is for.
    assert np.median(answers["percentile"] / truth) < 0.9
    assert np.median(answers["auto"] / truth) > 0.95


def grid(q):
    layer = next(layer for layer in q.layers if isinstance(layer, Quantize))
    return float(layer.quantizer.scale)


def test_rare_peaks_are_clipped_where_outputs_forget_them(rng):
    inputs = keras.Input((256, 1))
    x = layers.ReLU(max_value=0.2)(layers.Conv1D(1, 1, use_bias=False)(inputs))
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))
    model.set_weights([np.ones((1, 1, 1)), np.ones((1, 1)), np.zeros(1)])
    data, _ = signals(rng, 200, 100)
    q = tfq.quantize_model(model, "w8a8")
    tfq.calibrate(q, data, progress=False)
    assert grid(q) < 0.5 * (data.max() - data.min()) / 255


def test_a_second_calibration_chooses_again(rng):
    model, (data, _) = find_peak(), signals(rng, 200, 100)
    q = tfq.quantize_model(model, "w8a8")
    found = [grid(tfq.calibrate(q, x, progress=False)) for x in (data, data / 4, data)]
    assert found[0] == found[2] == pytest.approx(4 * found[1])


def test_a_fixed_batch_chooses_too(rng):
    inputs = keras.Input(batch_shape=(8, 256, 1))
    model = keras.Model(inputs, find_peak()(inputs))
    data, _ = signals(rng, 200, 100)
    q = tfq.calibrate(tfq.quantize_model(model, "w8a8"), data, progress=False)
    free = tfq.calibrate(tfq.quantize_model(find_peak(), "w8a8"), data, progress=False)
    assert grid(q) == pytest.approx(grid(free), rel=0.3)


def test_auto_knows_one_range_of_what_has_no_rare_values(rng):
    auto = Auto()
    summary = auto.summarize(rng.uniform(-1, 1, 100_000).astype("float32"))
    auto.update(summary)
    assert list(auto.ranges(tfq.QuantSpec(8))) == ["percentile"]
    far = auto.summarize(np.float32([3.0]))
    auto.update(far)
    assert auto.ranges(tfq.QuantSpec(8))["min_max"][1] == 3.0
    assert list(auto.ranges(tfq.QuantSpec(16))) == ["percentile"]
    assert auto.range(tfq.QuantSpec(16))[1] == 3.0
