"""Recurrent layers, unrolled, compute what they compute whole."""

import keras
import numpy as np
import pytest
from keras import layers
from small import assert_same, filled, whole_and_parts

import tfquant as tfq
from tfquant.registry import SCHEMES
from tfquant.unfold.unfold import unfold

SEQUENCE = (5, 4)  # Time steps, channels.

RECURRENT = {
    "lstm": lambda: layers.LSTM(3),
    "lstm sequences": lambda: layers.LSTM(3, return_sequences=True, go_backwards=True),
    "lstm state": lambda: layers.LSTM(3, return_state=True),
    "gru": lambda: layers.GRU(3),
    "gru reset before": lambda: layers.GRU(3, reset_after=False, return_sequences=True),
    "gru without bias": lambda: layers.GRU(3, use_bias=False),
    "simple": lambda: layers.SimpleRNN(3),
    "other activations": lambda: layers.LSTM(
        3, activation="relu", recurrent_activation="hard_sigmoid"
    ),
    "cell": lambda: layers.RNN(layers.GRUCell(3), return_sequences=True),
    "stacked cells": lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]),
    "stacked cells backwards": lambda: layers.RNN(
        [layers.LSTMCell(3), layers.SimpleRNNCell(2)], return_sequences=True, go_backwards=True
    ),
    "dense at every step": lambda: layers.TimeDistributed(layers.Dense(3)),
    "reshape at every step": lambda: layers.TimeDistributed(layers.Reshape((2, 2))),
    "bidirectional": lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
    "bidirectional sum": lambda: layers.Bidirectional(layers.GRU(3), merge_mode="sum"),
    "bidirectional state": lambda: layers.Bidirectional(layers.LSTM(3, return_state=True)),
}

CONVOLUTIONAL = {
    "of sequences": lambda: layers.ConvLSTM1D(3, 3),
    "of images": lambda: layers.ConvLSTM2D(3, (2, 3), padding="same", return_sequences=True),
    "strides": lambda: layers.ConvLSTM2D(2, 3, strides=2, go_backwards=True, use_bias=False),
    "dilation": lambda: layers.ConvLSTM1D(2, 3, dilation_rate=2, return_state=True),
    "both ways": lambda: layers.Bidirectional(layers.ConvLSTM1D(2, 3, return_sequences=True)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_an_unrolled_layer_computes_the_same(name, rng):
    x = rng.normal(size=(2, *SEQUENCE)).astype(np.float32)
    assert_same(whole_and_parts(RECURRENT[name](), rng, x))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_an_unrolled_layer_of_convolutions_computes_the_same(name, rng):
    layer = CONVOLUTIONAL[name]()
    shape = (4, 7, 6, 2) if type(layer) is layers.ConvLSTM2D else (4, 7, 2)
    assert_same(whole_and_parts(layer, rng, rng.normal(size=(2, *shape)).astype(np.float32)))


@pytest.mark.parametrize(
    "name", ["lstm", "gru", "lstm sequences", "bidirectional sum", "stacked cells"]
)
def test_masked_steps_keep_the_state(name, rng):
    layer = RECURRENT[name]()
    x, mask = keras.Input(SEQUENCE), keras.Input(SEQUENCE[:1], dtype="bool")
    whole = keras.Model([x, mask], layer(x, mask=mask))
    filled(layer, rng)
    parts = unfold(layer, SCHEMES["w8a8"])((x,), {"mask": mask})
    arrays = [
        rng.normal(size=(2, *SEQUENCE)).astype(np.float32),
        np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], bool),
    ]
    np.testing.assert_allclose(parts(arrays), whole(arrays), atol=1e-5)


def test_an_initial_state_is_read(rng):
    x, h, c = keras.Input(SEQUENCE), keras.Input((3,)), keras.Input((3,))
    layer = layers.LSTM(3)
    whole = keras.Model([x, h, c], layer(x, initial_state=[h, c]))
    parts = unfold(layer, SCHEMES["w8a8"])((x,), {"initial_state": [h, c]})
    arrays = [rng.normal(size=(2, *t.shape[1:])).astype(np.float32) for t in (x, h, c)]
    np.testing.assert_allclose(parts(arrays), whole(arrays), atol=1e-5)


def test_a_masked_layer_of_convolutions_stays_whole():
    x, mask = keras.Input((4, 7, 2)), keras.Input((4,), dtype="bool")
    layer = layers.ConvLSTM1D(3, 3)
    _ = layer(x)
    assert unfold(layer, SCHEMES["w8a8"])((x,), {"mask": mask}) is None


def test_a_sequence_of_unknown_length_stays_whole_with_a_warning(caplog, rng):
    model = keras.Sequential([keras.Input((None, 4)), layers.LSTM(3), layers.Dense(2)])
    quantized = tfq.quantize_model(model)
    assert any(isinstance(getattr(x, "layer", x), layers.LSTM) for x in quantized.layers)
    assert "(LSTM)" in caplog.text
    x = rng.normal(size=(4, 7, 4)).astype(np.float32)
    tfq.calibrate(quantized, x, progress=False)
    np.testing.assert_allclose(quantized(x), model(x), atol=0.05)


def test_all_steps_share_weights_and_grids(rng):
    model = keras.Sequential([keras.Input(SEQUENCE), layers.LSTM(3, name="lstm")])
    quantized = tfq.quantize_model(model)
    wrapper = quantized.get_layer("quant_lstm_recurrent")
    assert len(wrapper.call_sites) == SEQUENCE[0] - 1
    assert len({id(q) for q in keras.tree.flatten(wrapper.output_quantizers)}) == 1
