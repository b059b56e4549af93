"""Parts of one tensor that its grid swallows: measured, named, and told what helps."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


def decibels(expected, received):
    noise = np.square(np.asarray(expected, np.float64) - received).sum()
    return 10 * np.log10(np.square(np.asarray(expected, np.float64)).sum() / noise)


def detector(gain):
    """Returns a model of boxes and scores in one output, boxes `gain` times as large."""
    x = keras.Input((16,))
    y = layers.Dense(16, activation="relu")(x)
    boxes = layers.Dense(4, name="boxes")
    heads = [boxes(y), layers.Dense(3, activation="sigmoid", name="scores")(y)]
    model = keras.Model(x, layers.Concatenate(name="joined")(heads))
    boxes.set_weights([w * gain for w in boxes.get_weights()])
    return model


def converted(model, rows, path, scheme="w8a8", **settings):
    q = tfq.quantize_model(model, scheme, **settings)
    tfq.calibrate(q, rows, bias_correction=False, progress=False)
    return q, tfq.to_tflite(q, path, progress=False)


@pytest.mark.parametrize("gain", [1, 300])
def test_a_part_that_the_whole_swallows_is_named(gain, rng, tmp_path, caplog):
    rows = rng.normal(size=(100, 16)).astype("float32")
    model = detector(gain)
    q, report = converted(model, rows, tmp_path / "m.tflite")
    (joined,) = [layer for layer in report.layers if layer.name == "joined"]
    boxes, scores = joined.parts
    assert (boxes.name, scores.name) == ("boxes", "scores_sigmoid")
    (step,) = {float(layer.quantizer.params().scale) for layer in q.layers if "to_8" in layer.name}
    expected = np.asarray(model(rows[:32]))
    for part, values in ((boxes, expected[:, :4]), (scores, expected[:, 4:])):
        assert abs(part.levels - (values.max() - values.min()) / step) <= 1  # What is in between.
    assert joined.swallowed == (["scores_sigmoid"] if gain > 1 else [])
    assert ("scores_sigmoid" in caplog.text) == (gain > 1) == ("SWALLOWED" in str(report))
    noise = decibels(expected[:4, 4:], np.asarray(q(rows[:4]))[:, 4:])
    assert abs(scores.sqnr - noise) < 0.1


@pytest.mark.parametrize("help", ["skip", "w8a16"])
def test_what_is_said_to_help_does(help, rng, tmp_path):
    rows = rng.normal(size=(100, 16)).astype("float32")
    model = detector(300)
    settings = {"skip": ["joined"]} if help == "skip" else {"scheme": help}
    q, report = converted(model, rows, tmp_path / "m.tflite", **settings)
    assert not report.swallowed
    assert decibels(model(rows)[:, 4:], np.asarray(q(rows))[:, 4:]) > 35
    assert tfq.compare(q, tmp_path / "m.tflite", rows).largest < 1e-6


def test_columns_of_inputs_and_outputs_that_are_swallowed_are_named(rng, tmp_path):
    rows = rng.normal(size=(100, 3)).astype("float32") * np.array([0.02, 1e4, 5e3], "float32")
    x = keras.Input((3,), name="table")
    last = layers.Dense(3, name="last")
    model = keras.Model(x, last(layers.Dense(8)(x)))
    kernel, bias = last.get_weights()
    last.set_weights([kernel * np.array([1, 1e-4, 1]), bias])
    _, report = converted(model, rows, tmp_path / "m.tflite")
    found = {layer.name: layer.swallowed for layer in report.layers if layer.swallowed}
    assert found == {"quantize_table": ["column 0"], "last": ["column 1"]}


def test_columns_that_hold_one_value_or_share_a_unit_are_not_named(rng, tmp_path):
    rows = rng.normal(size=(100, 3)).astype("float32")
    rows[:, 1] = 0.25
    x = keras.Input((3,))
    y = layers.Dense(8, activation="relu", kernel_initializer=keras.initializers.Zeros())(x)
    model = keras.Model(x, [y, layers.Dense(9, activation="softmax", bias_initializer="ones")(y)])
    _, report = converted(model, rows, tmp_path / "m.tflite")
    assert not report.swallowed


@pytest.mark.parametrize("axis", [1, 2])
def test_tensors_of_a_sequence_joined_along_any_axis_are_parts(axis, rng, tmp_path):
    rows = rng.normal(size=(60, 5, 4)).astype("float32")
    x = keras.Input((5, 4))
    small = layers.Dense(4, name="small")
    join = layers.Concatenate(axis=axis, name="joined")
    model = keras.Model(x, join([small(x), layers.Dense(4)(x)]))
    small.set_weights([w * 1e-3 for w in small.get_weights()])
    _, report = converted(model, rows, tmp_path / "m.tflite")
    (joined,) = [layer for layer in report.layers if layer.name == "joined"]
    assert joined.swallowed == ["small"]


def test_what_joins_real_numbers_stays_float_in_the_file(rng, tmp_path):
    """The file once gave it the grid of its first input, unseen by the comparison."""
    rows = rng.normal(size=(60, 4)).astype("float32")
    x = keras.Input((4,))
    parts = [layers.Dense(3)(x), layers.Dense(3, activation="tanh")(x)]
    model = keras.Model(x, layers.Concatenate(name="joined")(parts))
    _, report = converted(model, rows, tmp_path / "m.tflite", skip=["joined"])
    assert [op.operator for op in report.float_operators] == ["CONCATENATION"]
