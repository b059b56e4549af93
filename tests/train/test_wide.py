"""Training with 16-bit activations on batches of one row."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq

QMAX = 127


def on_the_grid(rng, shape):
    """Returns a kernel that 8 bits hold exactly: all that is left is the noise of activations."""
    q = rng.integers(-QMAX + 1, QMAX, shape).astype("float32")
    q[0] = QMAX
    return q / np.float32(QMAX * 8)


def network(rng):
    x = keras.Input((16,))
    y = layers.Dense(32, activation="relu")(x)
    y = layers.Dense(32, activation="tanh")(y)
    model = keras.Model(x, layers.Dense(4)(y))
    model.set_weights([on_the_grid(rng, w.shape) if w.ndim > 1 else w for w in model.get_weights()])
    return model


def decibels(expected, received):
    noise = np.square(np.asarray(expected, np.float64) - received).sum()
    return 10 * np.log10(np.square(np.asarray(expected, np.float64)).sum() / noise)


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_training_row_by_row_leaves_the_ranges_that_calibration_found(scheme, rng, tmp_path):
    model, rows = network(rng), rng.normal(size=(120, 16)).astype("float32")
    rows[7] *= 6  # The largest is in one row of 120, and most batches are far inside of it.
    q = tfq.quantize_model(model, scheme, activation_quantizer="moving_average")
    tfq.calibrate(q, rows, observer="min_max", bias_correction=False, progress=False)
    expected = model.predict(rows, verbose=0)
    before = decibels(expected, q.predict(rows, verbose=0))
    q.compile(keras.optimizers.SGD(0.0), "mse")
    q.fit(rows, expected, batch_size=1, epochs=2, verbose=0)
    after = decibels(expected, q.predict(rows, verbose=0))
    if scheme == "w8a8":  # There an average is what is asked for: it follows the batches.
        assert before > 25 and after < before
        return
    assert before > 60 and after > before - 1
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=rows, progress=False)
    assert report.end_to_end.largest <= 1
