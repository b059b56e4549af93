"""Recurrent and attention models from Keras to a file."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq

# Every step is a part of the graph: two have a state between them, three one that was passed on.
STEPS = 2


def recurrent(layer, steps=STEPS):
    x = keras.Input((steps, 3))
    return keras.Model(x, layers.Dense(2)(layer(x)))


@keras.saving.register_keras_serializable(package="tfquant_tests")
class OwnCell(layers.Layer):
    """Keras's example of a cell."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units))
        self.recurrent_kernel = self.add_weight(shape=(self.units, self.units))
        self.gain = self.add_weight(shape=(self.units,), initializer="ones")
        self.built = True

    def call(self, x, states):
        h = ops.matmul(x, self.kernel) + ops.matmul(states[0], self.recurrent_kernel)
        h = ops.tanh(self.gain * h)
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def encoder():
    x = keras.Input((4, 8))
    y = layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    y = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(8)(layers.Dense(16, activation="gelu")(y))
    return keras.Model(x, layers.Dense(2)(layers.Flatten()(y)))


MODELS = {
    "lstm": lambda: recurrent(layers.LSTM(3), steps=3),
    "gru": lambda: recurrent(layers.GRU(3)),
    "gru reset before": lambda: recurrent(layers.GRU(3, reset_after=False)),
    "simple": lambda: recurrent(layers.SimpleRNN(3)),
    "bidirectional": lambda: recurrent(layers.Bidirectional(layers.LSTM(2))),
    "stacked cells": lambda: recurrent(layers.RNN([layers.LSTMCell(3), layers.GRUCell(3)])),
    "own cell": lambda: recurrent(layers.RNN(OwnCell(3))),
    "own cell, both ways": lambda: recurrent(layers.Bidirectional(layers.RNN(OwnCell(2)))),
    "convolutions of sequences": lambda: recurrent(
        lambda x: layers.Flatten()(layers.ConvLSTM1D(2, 2)(layers.Reshape((STEPS, 3, 1))(x)))
    ),
    "convolutions of images": lambda: recurrent(
        lambda x: layers.Flatten()(
            layers.ConvLSTM2D(2, 2, padding="same")(layers.Reshape((2, 3, 1, 1))(x))
        )
    ),
    "every step": lambda: recurrent(
        lambda x: layers.Flatten()(
            layers.TimeDistributed(layers.Conv1D(4, 2, activation="relu"))(
                layers.Reshape((STEPS, 3, 1))(x)
            )
        )
    ),
    "grouped attention": lambda: recurrent(
        lambda x: layers.Flatten()(layers.GroupQueryAttention(3, 4, 2)(x, x)), steps=4
    ),
    "encoder": encoder,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_sequence_model_trains_is_saved_and_becomes_an_integer_file(name, rng, tmp_path):
    model = MODELS[name]()
    model.set_weights([rng.normal(size=w.shape) * 0.5 for w in model.get_weights()])
    data = rng.normal(size=(64, *model.input_shape[1:])).astype(np.float32)
    quantized = tfq.quantize_model(model)
    tfq.calibrate(quantized, data, progress=False)
    expected, received = (np.asarray(m(data)) for m in (model, quantized))
    assert np.abs(received - expected).max() < 0.08 * np.abs(expected).max()

    quantized.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(again(data), received)

    report = tfq.to_tflite(quantized, tmp_path / "q.tflite", progress=False)
    # A value at the edge of a step on the way may come out a step apart, 16-bit tables more often.
    assert report.end_to_end.largest <= 3
    assert report.end_to_end.differing <= 0.3 * report.end_to_end.values
    assert not report.float_operators

    # A graph takes longer to trace; the gradients of every step are traced once.
    quantized.compile("sgd", "mse", run_eagerly=name != "lstm")
    before = [v.numpy() for v in quantized.trainable_variables]
    quantized.fit(data, np.zeros((64, 2), np.float32), verbose=0, batch_size=64)
    after = quantized.trainable_variables
    moved = [np.any(a != b.numpy()) for a, b in zip(before, after, strict=True)]
    assert np.mean(moved) > 0.8  # The bias of keys cancels in a softmax.


@pytest.mark.parametrize("scheme", ["w8", "w4", "w8a8_dynamic", "f16"])
@pytest.mark.parametrize("name", ["gru", "encoder"])
def test_schemes_of_float_activations_take_sequence_models(name, scheme, rng, tmp_path):
    model = MODELS[name]()
    data = rng.normal(size=(8, *model.input_shape[1:])).astype(np.float32)
    quantized = tfq.quantize_model(model, scheme)
    expected = np.asarray(model(data))
    tolerance = (0.35 if scheme == "w4" else 0.05) * np.abs(expected).max()
    np.testing.assert_allclose(quantized(data), expected, atol=tolerance)
    report = tfq.to_tflite(quantized, tmp_path / "q.tflite", samples=data, progress=False)
    assert report.end_to_end.largest < 0.02


def test_a_stateful_layer_starts_from_zeros_and_says_so(rng, tmp_path, caplog):
    x = keras.Input(batch_shape=(4, STEPS, 3))
    model = keras.Model(x, layers.Dense(2)(layers.LSTM(3, stateful=True, name="memory")(x)))
    data = rng.normal(size=(16, STEPS, 3)).astype(np.float32)
    quantized = tfq.quantize_model(model)
    assert "'memory' is stateful" in caplog.text
    tfq.calibrate(quantized, data, progress=False)
    report = tfq.to_tflite(quantized, tmp_path / "q.tflite", progress=False)
    assert report.end_to_end.largest <= 3
    assert not report.float_operators


def test_wide_values_that_are_always_zero_do_not_abort_the_device(rng, tmp_path):
    model = recurrent(
        layers.GRU(3, name="memory")
    )  # Fresh: the bias that the reset gate multiplies is zero.
    data = rng.normal(size=(16, STEPS, 3)).astype(np.float32)
    quantized = tfq.quantize_model(model)
    tfq.calibrate(quantized, data, observer="min_max", bias_correction=False, progress=False)
    (quantizer,) = quantized.get_layer("quant_memory_start_reset").output_quantizers[0]
    assert float(quantizer.scale.value) < 1e-4
    report = tfq.to_tflite(quantized, tmp_path / "q.tflite", progress=False)
    assert not report.float_operators
    assert report.end_to_end.largest <= 3
