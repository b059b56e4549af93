"""Attention and einsum layers in parts compute what they compute whole."""

import keras
import numpy as np
import pytest
from keras import layers
from small import assert_same, filled, whole_and_parts

import tfquant as tfq
from tfquant.registry import SCHEMES
from tfquant.unfold.unfold import unfold

SEQUENCE = (5, 4)  # Time steps, channels.

EINSUM = {
    "to heads": lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
    "joined": lambda: layers.EinsumDense("abc,bcd->ad", 3, bias_axes="d", activation="relu"),
    "ellipsis": lambda: layers.EinsumDense("...x,xy->...y", 3),
}


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
