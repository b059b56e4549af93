"""`Oscar`: ranges in closed form serve inputs that are independent and of different sizes."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


@pytest.mark.parametrize("scheme", ["w4a8", "w4", "w4_g32"])
def test_outputs_come_closer_on_rows_that_were_not_seen(scheme, rng):
    """Large weights of inputs that are small are clipped, for the sake of the others."""
    sizes = 10.0 ** rng.uniform(-2, 0, 64)
    seen, others = ((rng.normal(size=(128, 64)) * sizes).astype("float32") for _ in range(2))
    inputs = keras.Input((64,))
    model = keras.Model(inputs, layers.Dense(8, name="dense")(inputs))
    model.layers[-1].set_weights([rng.normal(size=(64, 8)) / sizes[:, None] ** 0.7, np.zeros(8)])
    q = tfq.quantize_model(model, scheme)
    q = tfq.calibrate(q, seen, progress=False) if scheme == "w4a8" else q
    before = np.mean((model(others) - q(others)) ** 2)
    tfq.optimize(q, seen, "oscar", progress=False)
    assert np.mean((model(others) - q(others)) ** 2) < 0.8 * before
