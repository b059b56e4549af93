"""Layers that are taken apart and called in several places."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq


def apart(shared, small, large):
    """A model that calls one layer on small and on large values."""
    x = keras.Input((3, 8))
    y = layers.Dense(8, use_bias=False)(shared(layers.Rescaling(small)(x)))
    return keras.Model(x, shared(layers.Rescaling(large)(y)))


class Attend(layers.Layer):
    """Self-attention."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.MultiHeadAttention(2, 4)

    def build(self, shape):
        self.inner.build(shape, shape)

    def call(self, x):
        return self.inner(x, x)


SHARED = {
    "norm": lambda: layers.LayerNormalization(epsilon=1e-9),
    "attention": Attend,
    "model": lambda: keras.Sequential(
        [keras.Input((3, 8)), layers.Dense(8), layers.LayerNormalization(epsilon=1e-9)]
    ),
    "lstm": lambda: layers.LSTM(8, return_sequences=True),
}


@pytest.mark.parametrize("kind", SHARED)
def test_calls_of_one_layer_have_grids_of_their_own(kind, rng, tmp_path):
    keras.utils.set_random_seed(0)
    model = apart(SHARED[kind](), 1e-2, 1e2)
    data = rng.normal(size=(48, 3, 8)).astype("float32")
    q = tfq.quantize_model(model)
    tfq.calibrate(q, data, progress=False)
    expected, received = (m.predict(data, verbose=0) for m in (model, q))
    noise = np.mean((received - expected) ** 2)
    assert 10 * np.log10(np.mean(expected**2) / noise) > 20
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.end_to_end.differing == 0 and not report.float_operators
