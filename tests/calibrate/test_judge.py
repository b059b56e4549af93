"""What judges a quantized model while it is calibrated."""

import keras
import numpy as np
from keras import layers, ops

import tfquant as tfq


def test_outputs_that_compare_rows_with_each_other_are_judged_on_all_rows(rng):
    x, y = keras.Input((4,)), keras.Input((4,))
    a, b = layers.Dense(3)(x), layers.Dense(3)(y)
    model = keras.Model([x, y], [ops.matmul(a, ops.transpose(b)), a])
    rows = [rng.normal(size=(24, 4)).astype(np.float32) for _ in range(2)]
    q = tfq.quantize_model(model)
    tfq.calibrate(q, rows, progress=False)
    for expected, received in zip(model(rows), q(rows), strict=True):
        expected = np.asarray(expected)
        assert expected.shape == received.shape
        np.testing.assert_allclose(received, expected, atol=0.05 * np.abs(expected).max())
