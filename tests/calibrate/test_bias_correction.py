import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(16, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(8),
        ]
    )


def test_channel_means_are_those_of_the_float_model(rng):
    model, data = network(), rng.uniform(0, 1, (64, 12, 12, 3)).astype("float32")
    expected = model.predict(data, verbose=0).mean(0)
    q = tfq.calibrate(tfq.quantize_model(model, "w4a8"), data, progress=False)
    step = float(q.layers[-1].output_quantizers[0][0].scale.numpy())
    received = q.predict(data, verbose=0).mean(0)
    # Rounding the output leaves a fraction of a step; uncorrected means are many steps away.
    np.testing.assert_allclose(received, expected, atol=0.5 * step)


def test_four_bit_outputs_come_closer_to_the_float_model(rng):
    model, data = network(), rng.uniform(0, 1, (96, 12, 12, 3)).astype("float32")
    seen, unseen = data[:64], data[64:]
    errors = {}
    for corrected in (False, True):
        q = tfq.quantize_model(model, "w4a8")
        tfq.calibrate(q, seen, bias_correction=corrected, progress=False)
        error = q.predict(unseen, verbose=0) - model.predict(unseen, verbose=0)
        errors[corrected] = float((error**2).mean())
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.parametrize("corrected", [False, True])
def test_the_float_model_keeps_its_biases(corrected, rng):
    model, data = network(), rng.uniform(0, 1, (8, 12, 12, 3)).astype("float32")
    before = [w.copy() for w in model.get_weights()]
    q = tfq.quantize_model(model, "w4a8")
    tfq.calibrate(q, data, bias_correction=corrected, progress=False)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
