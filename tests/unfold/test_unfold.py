"""Recurrent, attention and einsum layers in parts compute what they compute whole."""

import keras
import numpy as np
import pytest
from keras import layers

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

EINSUM = {
    "to heads": lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
    "joined": lambda: layers.EinsumDense("abc,bcd->ad", 3, bias_axes="d", activation="relu"),
    "ellipsis": lambda: layers.EinsumDense("...x,xy->...y", 3),
}


def filled(layer, rng):
    """Gives a built layer weights of which none is zero."""
    layer.set_weights([rng.normal(size=w.shape) * 0.5 for w in layer.get_weights()])


def whole_and_parts(layer, rng, *inputs, **arguments):
    """Returns what `layer` computes of `inputs`, whole and unfolded, as flat lists."""
    tensors = [keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs]
    whole = keras.Model(tensors, layer(*tensors, **arguments))
    filled(layer, rng)
    parts = unfold(layer, SCHEMES["w8a8"])(tuple(tensors), arguments)
    return [keras.tree.flatten(model(list(inputs))) for model in (whole, parts)]


def assert_same(pair):
    for expected, received in zip(*pair, strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-5)


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


@pytest.mark.parametrize("name", EINSUM)
def test_an_einsum_that_is_a_matrix_product_computes_the_same(name, rng):
    x = rng.normal(size=(2, *SEQUENCE)).astype(np.float32)
    assert_same(whole_and_parts(EINSUM[name](), rng, x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.MultiHeadAttention(2, 3),
        lambda: layers.MultiHeadAttention(2, 3, value_dim=5, output_shape=6, use_bias=False),
        lambda: layers.GroupQueryAttention(3, 4, 2),
    ],
    ids=["multi-head", "sizes", "grouped"],
)
@pytest.mark.parametrize("arguments", [{}, {"use_causal_mask": True}], ids=["", "causal"])
def test_attention_in_parts_computes_the_same(make, arguments, rng):
    x, y = (rng.normal(size=(2, *SEQUENCE)).astype(np.float32) for _ in range(2))
    assert_same(whole_and_parts(make(), rng, x, y, **arguments))


def test_attention_masks_hide_what_they_hid(rng):
    x, mask = keras.Input(SEQUENCE), keras.Input((5, 5), dtype="bool")
    layer = layers.MultiHeadAttention(2, 3)
    arguments = {"attention_mask": mask, "return_attention_scores": True}
    whole = keras.Model([x, mask], layer(x, x, **arguments))
    filled(layer, rng)
    parts = unfold(layer, SCHEMES["w8a8"])((x, x), arguments)
    hidden = rng.random((2, 5, 5)) < 0.5
    hidden[..., 0] = False
    arrays = [rng.normal(size=(2, *SEQUENCE)).astype(np.float32), ~hidden]
    assert_same([model(arrays) for model in (whole, parts)])


@pytest.mark.parametrize(
    "layer",
    [
        layers.TimeDistributed(layers.BatchNormalization()),
        layers.EinsumDense("abc,bcd->abd", (5, 3)),
        layers.ConvLSTM1D(2, 3, data_format="channels_first"),
        layers.ConvLSTM3D(2, 1),
    ],
    ids=["statistics", "einsum", "channels first", "volumes"],
)
def test_what_cannot_be_unfolded_stays_whole(layer):
    shapes = {
        layers.ConvLSTM1D: (2, 5, 4, 4),
        layers.ConvLSTM3D: (2, 5, 4, 4, 4, 2),
    }
    shape = shapes.get(type(layer), (2, *SEQUENCE))
    x = keras.Input(batch_shape=shape)
    layer(x)
    assert unfold(layer, SCHEMES["w8a8"]) is None


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


@pytest.mark.parametrize("scheme", ["w8a8", "w8"])
def test_masks_of_an_embedding_reach_attention(scheme, rng):
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True)(ids)
    y = layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 4)(x, x))
    model = keras.Model(ids, layers.Dense(2)(y))
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    data = rng.integers(1, 9, (32, 6)).astype(np.int32)
    data[:, 4:] = 0
    quantized = tfq.quantize_model(model, scheme)
    if scheme == "w8a8":
        tfq.calibrate(quantized, data, progress=False)
    expected = np.asarray(model(data))
    np.testing.assert_allclose(quantized(data), expected, atol=0.05 * np.abs(expected).max())


def test_a_mask_does_not_widen_the_range_of_scores(rng):
    x, mask = keras.Input((6, 8)), keras.Input((6, 6))
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x, attention_mask=mask)
    quantized = tfq.quantize_model(keras.Model([x, mask], y))
    visible = (rng.random((32, 6, 6)) < 0.5).astype(np.float32)
    visible[..., 0] = 1
    data = [rng.normal(size=(32, 6, 8)).astype(np.float32), visible]
    tfq.calibrate(quantized, data, progress=False)
    (quantizer,) = quantized.get_layer("quant_attention_masked0").output_quantizers[0]
    assert float(quantizer.scale.value) * 255 < 30  # Of 1000 that the mask subtracts.


def test_all_steps_share_weights_and_grids(rng):
    model = keras.Sequential([keras.Input(SEQUENCE), layers.LSTM(3, name="lstm")])
    quantized = tfq.quantize_model(model)
    wrapper = quantized.get_layer("quant_lstm_recurrent")
    assert len(wrapper.call_sites) == SEQUENCE[0] - 1
    assert len({id(q) for q in keras.tree.flatten(wrapper.output_quantizers)}) == 1


def test_attention_over_one_axis_of_several_stays_whole_with_integer_weights(rng, tmp_path):
    x = keras.Input((3, 3, 4))
    y = layers.MultiHeadAttention(2, 3, attention_axes=(1,), name="attention")(x, x)
    quantized = tfq.quantize_model(keras.Model(x, y))
    tfq.calibrate(quantized, rng.normal(size=(8, 3, 3, 4)).astype(np.float32), progress=False)
    report = tfq.to_tflite(quantized, tmp_path / "q.tflite", progress=False)
    (layer,) = (layer for layer in report.layers if layer.name == "attention")
    assert layer.weight_bits == 8
    assert report.end_to_end.largest < 1e-5  # Relative: both compute in float.
