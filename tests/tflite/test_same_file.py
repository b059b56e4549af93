"""The same model gives the same file, whatever was built before it."""

import keras
import pytest
from keras import layers, ops

import tfquant as tfq


def convolutions(x):
    y = layers.BatchNormalization()(layers.Conv1D(6, 3, padding="same", activation="relu6")(x))
    y = layers.ReLU()(y + layers.Conv1D(6, 1)(y) - 0.5)
    return layers.Dense(3, "softmax")(layers.GlobalAveragePooling1D()(layers.PReLU()(y)))


def attention(x):
    y = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return layers.UnitNormalization()(layers.Dense(4, "gelu")(y) - 1.0)


def recurrent(x):
    return [layers.SimpleRNN(3)(x), layers.GRU(2, return_sequences=True)(x[:, :2])]


def floats(x):
    y = layers.Activation("squareplus")(x - ops.flip(x, 1)) + x + ops.softsign(x)
    return layers.Dropout(0.5)(ops.maximum(y, ops.zeros_like(y)))


def shared(x):
    inner = keras.Input((6, 6))
    part = keras.Model(inner, ops.relu(layers.Dense(6)(inner) + inner) + ops.softsign(inner))
    return part(part(x)) - part(x)


@pytest.mark.parametrize("batch_size", [1, None])
@pytest.mark.parametrize("network", [convolutions, attention, recurrent, floats, shared])
def test_the_same_model_gives_the_same_file(network, batch_size, rng, tmp_path):
    inputs = keras.Input((6, 6), name="x")
    model = keras.Model(inputs, network(inputs), name="net")
    data = rng.normal(size=(20, 6, 6)).astype("float32")

    def written(q):
        settings = {"samples": data, "batch_size": batch_size, "verify": False, "progress": False}
        tfq.to_tflite(q, tmp_path / "m.tflite", **settings)
        return (tmp_path / "m.tflite").read_bytes()

    first, again = (
        tfq.calibrate(tfq.quantize_model(model), data, progress=False) for _ in range(2)
    )
    file = written(first)
    assert file == written(first) == written(again)
    first.save(tmp_path / "q.keras")
    assert file == written(keras.models.load_model(tmp_path / "q.keras"))
