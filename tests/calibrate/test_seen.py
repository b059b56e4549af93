"""Data that say little of real inputs are warned of, and no others."""

import logging

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


def model(inputs=1):
    xs = [keras.Input((6,), name=name) for name in ("x", "z")[:inputs]]
    y = layers.Add()(xs) if inputs > 1 else xs[0]
    return tfq.quantize_model(keras.Model(xs, layers.Dense(3, name="dense")(y)))


def warnings(caplog, data, inputs=1, **settings):
    with caplog.at_level(logging.WARNING, "tfquant"):
        tfq.calibrate(model(inputs), data, progress=False, **settings)
    return [r.getMessage() for r in caplog.records if "saw little" in r.getMessage()]


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (np.zeros((8, 6)), {}, "input 'x' is 0 everywhere"),
        (np.full((8, 6), 2.5), {}, "input 'x' is 2.5 everywhere"),
        (np.arange(6.0)[None], {}, "there is 1 row"),
        (np.tile(np.arange(6.0), (40, 1)), {}, "all 40 rows are the same"),
        (np.eye(6), {"steps": 4, "batch_size": 2}, "the data end after 3 of steps=4 batches"),
        (
            lambda: iter([np.eye(6)]),
            {"steps": 2},
            "the data end after 1 of steps=2 batches",
        ),
    ],
)
def test_data_that_say_little_are_warned_of(caplog, data, settings, words):
    (message,) = warnings(caplog, data, **settings)
    assert message == (
        "Ranges may be wrong for real inputs, since calibration saw little: " + words + "."
    )


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (np.eye(6), {}),
        (np.eye(6)[:2], {}),
        (np.eye(6), {"steps": 3, "batch_size": 2}),
        (np.eye(6), {"steps": 2, "batch_size": 2}),
    ],
)
def test_other_data_are_not(caplog, data, settings):
    assert warnings(caplog, data, **settings) == []


def test_each_input_is_looked_at(caplog):
    (message,) = warnings(caplog, [np.eye(6), np.ones((6, 6))], inputs=2)
    assert message.endswith("saw little: input 'z' is 1 everywhere.")


def test_the_best_effort_warns_too(caplog):
    x = keras.Input((6,), name="x")
    plain = keras.Model(x, layers.Dense(3)(x))
    with caplog.at_level(logging.WARNING, "tfquant"):
        tfq.quantize(
            plain, np.tile(np.eye(6), (4, 1)), effort="best", batch_size=12, steps=9, progress=False
        )
    (message,) = [r.getMessage() for r in caplog.records if r.name == "tfquant"]
    assert message == "Integers are chosen on little: the data end after 2 of steps=9 batches."
