"""Packed layers against plain Keras layers that are given the same, already quantized, weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfquant.lowbit import layers

FLOAT = {"num_bits": 4, "group_size": 0, "activations": "float"}


@pytest.fixture(autouse=True)
def built(core):
    """Every test here needs the compiled ops."""


def integers(rng, *shape):
    q = rng.integers(-8, 8, shape)
    scale = rng.uniform(0.05, 0.2, shape[-1]).astype(np.float32)
    return q, scale, rng.normal(size=shape[-1]).astype(np.float32)


def dense(rng):
    q, scale, bias = integers(rng, 20, 7)
    twin = keras.layers.Dense(7, activation="softplus")
    packed = layers.PackedDense.from_integers(q, scale, bias, activation="softplus", **FLOAT)
    return packed, twin, [q * scale, bias], rng.normal(size=(3, 5, 20))


def conv(rank, size, **settings):
    def make(rng):
        q, scale, bias = integers(rng, *[size] * rank, 5, 6)
        packed = layers.PackedConv.from_integers(
            q, scale, bias, activation="relu", **settings, **FLOAT
        )
        twin_of = keras.layers.Conv1D if rank == 1 else keras.layers.Conv2D
        twin = twin_of(6, size, activation="relu", **settings)
        return packed, twin, [q * scale, bias], rng.normal(size=(2, *[11] * rank, 5))

    return make


LAYERS = {
    "dense": dense,
    "conv 1x1": conv(2, 1),
    "conv 1x1 strides": conv(2, 1, strides=2),
    "conv 3x3": conv(2, 3, padding="same"),
    "conv 3x3 strides": conv(2, 3, strides=2, padding="same"),
    "conv 3x3 dilated": conv(2, 3, dilation_rate=2),
    "conv 1d": conv(1, 4, padding="valid"),
    "conv 1d causal": conv(1, 4, padding="causal", dilation_rate=2),
    "conv 1d causal strides": conv(1, 3, padding="causal", strides=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_layer_computes_what_its_twin_does(rng, name):
    packed, twin, weights, x = LAYERS[name](rng)
    x = tf.constant(x, tf.float32)
    twin.build(x.shape)
    twin.set_weights([np.reshape(w, v.shape) for w, v in zip(weights, twin.weights, strict=True)])
    y = packed(x)
    assert tuple(y.shape) == packed.compute_output_shape(x.shape)
    # Both sum about a hundred float products of size one.
    np.testing.assert_allclose(y, twin(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_model_survives_saving(rng, name, tmp_path):
    packed, _, _, x = LAYERS[name](rng)
    x = x.astype(np.float32)
    model = keras.Sequential([keras.Input(x.shape[1:]), packed])
    y = model.predict(x, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), y)
    model.export(tmp_path / "m", format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.serve(x), y)


@pytest.mark.parametrize("group_size", [0, 8])
def test_a_packed_embedding_looks_up_its_rows(rng, group_size, tmp_path):
    q = rng.integers(-8, 8, (30, 16))
    scale = rng.uniform(0.1, 1, (30, 16 // group_size if group_size else 1)).astype(np.float32)
    packed = layers.PackedEmbedding.from_integers(q, scale, group_size=group_size)
    rows = q * np.repeat(scale, group_size or 16, axis=1)
    x = rng.integers(0, 30, (4, 5))
    np.testing.assert_array_equal(packed(x), rows[x].astype(np.float32))
    model = keras.Sequential([keras.Input((5,), dtype="int32"), packed])
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), rows[x].astype(np.float32))


@pytest.mark.parametrize("num_bits", [8, 4])
def test_an_embedding_of_one_grid_is_the_table_on_that_grid(rng, num_bits):
    zero_point, scale = -3, np.float32(0.1)
    q = rng.integers(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1), (30, 7))
    packed = layers.PackedEmbedding.from_integers(
        q, [[scale]], num_bits=num_bits, shared_scale=True, zero_point=zero_point, mask_zero=True
    )
    rows = (q - zero_point).astype(np.float32) * scale
    x = rng.integers(0, 30, (4, 5))
    np.testing.assert_array_equal(packed(x), rows[x])
    np.testing.assert_array_equal(packed.compute_mask(x), x != 0)
    assert packed.scale.shape == (1, 1)
    again = layers.PackedEmbedding.from_config(packed.get_config())
    assert again.get_config() == packed.get_config()


def test_a_call_may_bring_its_own_zero_point(rng):
    q = rng.integers(-8, 8, (20, 7))
    static = {"num_bits": 4, "group_size": 0, "activations": "static", "zero_point": 5}
    packed = layers.PackedDense.from_integers(q, np.ones(7), **static)
    x = rng.integers(-120, 120, (3, 20)).astype(np.float32)  # Within int8 for either zero point.
    np.testing.assert_array_equal(packed(x), x @ q)
    np.testing.assert_array_equal(packed(x, zero_point=-7), x @ q)
    far = np.full((1, 20), 200, np.float32)
    np.testing.assert_array_equal(packed(far), 122 * q.sum(0)[None])  # 127 less the zero point.
    np.testing.assert_array_equal(packed(far, zero_point=-100), 200 * q.sum(0)[None])


def test_packed_weights_take_an_eighth_of_the_memory(rng):
    layer = layers.PackedDense(1024, 1024, num_bits=4, group_size=32, use_bias=False)
    size = sum(np.prod(w.shape) * np.dtype(w.dtype).itemsize for w in layer.weights)
    assert size < 0.15 * 4 * 1024 * 1024  # 4.5 bits of 32, and two floats a column


def test_wrong_layers_are_refused(rng):
    for padding, size in (("causal", (3, 3)), ("full", 3)):
        with pytest.raises(ValueError, match="`padding` must be 'valid' or 'same'"):
            layers.PackedConv(4, size, 5, padding=padding)
    with pytest.raises(ValueError, match=r"`zero_point` must lie in \[-8, 7\]"):
        layers.PackedEmbedding(4, 5, zero_point=8)
    with pytest.raises(ValueError, match="`kernel_size` must have one or two sizes"):
        layers.PackedConv(4, (3, 3, 3), 5)
    with pytest.raises(ValueError, match="The weights must have the shape"):
        layers.PackedDense(4, 2, group_size=0)._set(np.ones((5, 2)), np.ones(2), None)
