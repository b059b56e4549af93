"""What the `call` of a layer consists of, read where symbolic tensors tell too little."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq


def assert_read(model, rows, others=()):
    """Asserts that no layer of its author's own is left, and that the outputs are the same."""
    q = tfq.quantize_model(model)
    assert not [x.name for x in q.layers if type(getattr(x, "layer", x)).__module__ == __name__]
    tfq.calibrate(q, rows, observer="min_max", progress=False)
    for arrays in (rows, *others):
        expected, received = (keras.tree.flatten(m(arrays, training=False)) for m in (model, q))
        for x, y in zip(expected, received, strict=True):
            np.testing.assert_allclose(y, x, atol=0.05 * np.abs(x).max())
    return q


class Places(layers.Layer):
    """Adds its place to each step of its second sequence, and the first of the other."""

    def call(self, x, y):
        time = ops.arange(ops.shape(y)[1], dtype="float32")
        return y + 0.1 * time[:, None] + x[:, :1]


def test_two_free_lengths_are_two(rng):
    x, y = keras.Input((None, 4)), keras.Input((None, 4))
    model = keras.Model([x, y], Places()(x, y))
    a, b = rng.normal(size=(2, 16, 9, 4)).astype(np.float32)
    q = assert_read(model, [a[:, :6], b], [[a[:, :3], b], [a, b[:, :3]]])
    with pytest.raises(ValueError, match=r"read for up to 512 steps\. Received: 513 steps"):
        q([np.zeros((1, n, 4), np.float32) for n in (2, 513)])


class Shifted(layers.Layer):
    """Adds its place to each step of the sum of two sequences of one length."""

    def call(self, x, y):
        return x + y + 0.1 * ops.arange(ops.shape(y)[1], dtype="float32")[:, None]


def test_two_free_lengths_that_must_be_the_same_are_one(rng):
    x, y = keras.Input((None, 4)), keras.Input((None, 4))
    a, b = rng.normal(size=(2, 16, 9, 4)).astype(np.float32)
    assert_read(keras.Model([x, y], Shifted()(x, y)), [a, b], [[a[:, :3], b[:, :3]]])


class Hidden(layers.Layer):
    """Means over those steps that a square mask and the past do not hide."""

    def call(self, x, mask):
        time = ops.arange(ops.shape(x)[1])
        seen = ops.logical_and(ops.cast(mask, "bool"), time[:, None] >= time[None])
        seen = ops.where(seen, ops.sum(x, axis=-1)[:, None], 0.0)
        return ops.matmul(seen, x)


@pytest.mark.parametrize("dtype", ["bool", "int32"])
def test_the_lengths_of_a_mask_are_those_of_its_sequence(rng, dtype):
    x, mask = keras.Input((None, 4)), keras.Input((None, None), dtype=dtype)
    rows = lambda n: [  # noqa: E731
        rng.uniform(-1, 1, (16, n, 4)).astype(np.float32),
        rng.integers(0, 2, (16, n, n)).astype(dtype),
    ]
    assert_read(keras.Model([x, mask], Hidden()(x, mask)), rows(6), [rows(3)])


class Columns(layers.Layer):
    """Adds the number of its column to each point of an image."""

    def call(self, x):
        return x + 0.1 * ops.arange(ops.shape(x)[2], dtype="float32")[:, None]


def test_height_and_width_are_not_taken_for_one_length(rng):
    x = keras.Input((None, None, 4))
    model = keras.Model(x, Columns()(layers.Conv2D(4, 1)(x)))
    q = tfq.quantize_model(model)
    rows = rng.normal(size=(16, 3, 6, 4)).astype(np.float32)
    tfq.calibrate(q, rows, progress=False)
    expected = np.asarray(model(rows))
    np.testing.assert_allclose(q(rows), expected, atol=0.05 * np.abs(expected).max())


class Attends(layers.Layer):
    """A dense layer that returns a cache, which is nothing here, beside its output."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(4,), initializer="random_uniform", name="gain")
        self.dense = layers.Dense(4, name="dense")  # Of the same name in each of them.
        self.dense.build(shape)
        self.built = True

    def call(self, x, mask=None, cache=None):
        return self.dense(self.gain * x), cache


class Pair(layers.Layer):
    """Two tensors out of two, of which Keras is told that they are one."""

    def call(self, x, y):
        return x * 2.0, y + ops.arange(ops.shape(x)[1], dtype="float32")[:, None]

    def compute_output_shape(self, shape, *others):
        return shape


class Around(layers.Layer):
    """Calls layers that Keras cannot call on symbolic tensors."""

    def build(self, shape):
        self.attends, self.pair = [Attends(), Attends()], Pair()
        for layer in (*self.attends, self.pair):
            layer.build(shape)
        self.built = True

    def call(self, x):
        cache = None
        for layer in self.attends:
            y, cache = layer(x, mask=None, cache=cache)
            x = x + y
        x, y = self.pair(x, x)
        return ops.concatenate([x, y], axis=-1)


@pytest.mark.parametrize("length", [6, None])
def test_inner_layers_that_return_more_than_tensors_are_read_through(rng, length):
    x = keras.Input((length, 4))
    model = keras.Model(x, Around()(x))
    rows = rng.normal(size=(32, 6, 4)).astype(np.float32)
    q = assert_read(model, rows, [rows[:3]])
    wrapped = [x.layer for x in q.layers if isinstance(x, tfq.QuantizeWrapper)]
    assert sum(isinstance(x, layers.Dense) for x in wrapped) == 2


class Folded(layers.Layer):
    """Works on halves of sequences as if they were rows, and knows their length from a layer."""

    def build(self, shape):
        self.project = layers.EinsumDense("abc,cde->abde", (None, 2, 2))
        self.project.build(shape)
        self.mix = layers.Dense(4)
        self.mix.build((None, 4))
        self.built = True

    def call(self, x):
        y = self.project(x)
        batch, steps = ops.shape(y)[:2]
        y = ops.reshape(y + ops.arange(steps, dtype="float32")[:, None, None], (batch, steps, -1))
        y = self.mix(ops.reshape(y, (-1, 4)))
        halves = ops.reshape(y, (-1, 1, 2, 4))
        halves = halves - halves[:, :, ::-1]
        batch = ops.shape(halves)[0] // 3
        return ops.reshape(halves, (batch, 6, 4)) if x.shape[1] else ops.reshape(y, ops.shape(x))


@pytest.mark.parametrize("length", [6, None])
def test_reshapes_of_the_batch_are_read(rng, length):
    x = keras.Input((length, 4))
    rows = rng.normal(size=(32, 6, 4)).astype(np.float32)
    assert_read(keras.Model(x, Folded()(x)), rows, [rows[:3]])


class Uncopied(layers.Layer):
    """A layer that cannot be made again, nor read."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self._given = function

    def call(self, x):
        return tf.nn.relu(self._given(x))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Holds(layers.Layer):
    """Has a layer inside that cannot be made again, and makes it itself."""

    def build(self, shape):
        self.dense, self.inner = layers.Dense(4), Uncopied(lambda x: 2.0 * x)
        self.dense.build(shape)
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return self.inner(self.dense(x))


def test_a_layer_around_one_that_cannot_be_copied_stays_whole(rng, caplog):
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(3)(Holds(name="holds")(x)))
    with caplog.at_level("WARNING"):
        q = tfq.quantize_model(model)
    assert "'holds' (Holds)" in caplog.text
    rows = rng.normal(size=(32, 4)).astype(np.float32)
    tfq.calibrate(q, rows, progress=False)
    expected = np.asarray(model(rows))
    np.testing.assert_allclose(q(rows), expected, atol=0.05 * np.abs(expected).max())
