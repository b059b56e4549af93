"""Operations that have no value at 0, on grids that bring values to it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq

POLES = {
    "log": ops.log,
    "reciprocal": lambda t: 1.0 / t,
    "quotient": lambda t: 2.0 * ops.reciprocal(t),
    "rsqrt": ops.rsqrt,
    "power": lambda t: t**-1,
    "signed": lambda t: 1.0 / (t - 1.0),
}


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
@pytest.mark.parametrize("name", POLES)
def test_the_file_and_the_model_agree_at_a_pole(name, scheme, rng, tmp_path):
    rows = np.clip(np.abs(rng.normal(size=(64, 6))), 0.05, 4).astype("float32")
    x = keras.Input((6,))
    y = POLES[name](layers.Dense(6, kernel_initializer="identity", activation="relu")(x))
    model = keras.Model(x, layers.Dense(2)(y))
    q = tfq.calibrate(tfq.quantize_model(model, scheme), rows, progress=False)
    assert all(np.isfinite(w.numpy()).all() for w in q.weights)
    hard = np.concatenate([np.zeros((2, 6), "float32"), np.ones((2, 6), "float32"), rows])
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=hard, progress=False)
    assert np.isfinite(q.predict(hard, verbose=0)).all()
    assert report.end_to_end.in_steps and report.end_to_end.differing == 0
    assert not report.broken_claims
