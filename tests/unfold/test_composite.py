"""Layers and models of one's own: what they consist of is quantized."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq

SHAPE = (6, 6, 4)


class Block(layers.Layer):
    """A residual block with raw operations and inner layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(4, 3, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()
        self.point = layers.Conv2D(4, 1)

    def call(self, x, training=None):
        y = ops.relu(self.norm(self.convolution(x), training=training))
        return ops.relu(self.point(y) + x)


class OwnDense(layers.Layer):
    """A dense layer and a layer scale out of raw variables."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 5), initializer="he_normal")
        self.shift = self.add_weight(shape=(5,), initializer="random_normal")
        self.gain = self.add_weight(shape=(5,), initializer="ones")
        self.built = True

    def call(self, x):
        return (ops.matmul(x, self.kernel) + self.shift) * self.gain


@keras.saving.register_keras_serializable(package="tfquant_tests")
class OwnNorm(layers.Layer):
    """A norm out of raw operations."""

    def call(self, x):
        return x * ops.rsqrt(ops.mean(ops.square(x), -1, keepdims=True) + 1e-6)


class Model(keras.Model):
    """A subclassed model with two heads."""

    def __init__(self):
        super().__init__(name="own")
        self.stem, self.block = layers.Conv2D(4, 1), Block()
        self.head, self.other = layers.Dense(3), layers.Dense(2)

    def call(self, x, training=None):
        x = ops.mean(self.block(self.stem(x), training=training), axis=(1, 2))
        return {"a": self.head(x), "b": self.other(x)}


def data(rng, count=32):
    return rng.normal(size=(count, *SHAPE)).astype(np.float32)


def converted(model, x, path):
    q = tfq.quantize_model(model)
    tfq.calibrate(q, x, observer="min_max", progress=False)
    return q, tfq.to_tflite(q, path / "model.tflite", progress=False)


def wrapped(q):
    return [x.layer for x in q.layers if isinstance(x, tfq.QuantizeWrapper)]


def assert_close(q, model, x):
    for ours, theirs in zip(tf.nest.flatten(q(x)), tf.nest.flatten(model(x)), strict=True):
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(ours, theirs, atol=0.04 * np.abs(theirs).max())


def test_a_composite_layer_becomes_integer_kernels(rng, tmp_path):
    x = keras.Input(SHAPE)
    model, rows = keras.Model(x, Block()(Block()(x))), data(rng)
    q, report = converted(model, rows, tmp_path)
    assert sum(isinstance(layer, layers.Conv2D) for layer in wrapped(q)) == 4
    assert not report.float_operators
    assert report.end_to_end.differing == 0
    assert_close(q, model, rows)


def test_raw_variables_are_kernels_and_gains(rng, tmp_path):
    x = keras.Input(SHAPE)
    model, rows = keras.Model(x, layers.ReLU()(OwnDense()(x))), data(rng)
    q, report = converted(model, rows, tmp_path)
    assert type(wrapped(q)[0]) is layers.Dense
    assert report.layers[1].weight_bits == 8
    assert not report.float_operators
    assert report.end_to_end.differing == 0
    assert_close(q, model, rows)


def test_a_layer_called_twice_holds_its_weights_once(rng, tmp_path):
    x, block = keras.Input(SHAPE), Block()
    model, rows = keras.Model(x, block(block(x))), data(rng)
    q, report = converted(model, rows, tmp_path)
    assert sum(isinstance(layer, layers.Conv2D) for layer in wrapped(q)) == 2
    assert len(q.trainable_variables) >= len(model.trainable_variables)
    assert report.end_to_end.differing == 0
    assert_close(q, model, rows)


def test_a_subclassed_model_is_read(rng, tmp_path):
    model, rows = Model(), data(rng)
    model(rows[:2])
    q, report = converted(model, rows, tmp_path)
    assert set(q(rows)) == {"a", "b"}
    assert not report.float_operators
    assert report.end_to_end.differing == 0
    assert_close(q, model, rows)


def test_a_subclassed_model_inside_another_is_read(rng, tmp_path):
    x = keras.Input(SHAPE)
    inner = Model()
    model, rows = (
        keras.Model(x, layers.Add()([inner(x)["b"], layers.Dense(2)(inner(x)["a"])])),
        data(rng),
    )
    q, report = converted(model, rows, tmp_path)
    assert not report.float_operators
    assert_close(q, model, rows)


def test_a_norm_of_ones_own_stays_float_and_is_named(rng, tmp_path):
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(3)(OwnNorm(name="norm")(layers.Dense(8)(x))))
    rows = rng.normal(size=(32, 8)).astype(np.float32)
    _, report = converted(model, rows, tmp_path)
    assert {"norm"} == {op.reason.split("'")[1] for op in report.float_operators}


def test_the_model_trains_and_is_loaded_without_the_layers_it_was_made_of(rng, tmp_path):
    x = keras.Input(SHAPE)
    model, rows = keras.Model(x, OwnDense()(Block()(x))), data(rng)
    q = tfq.quantize_model(model)
    tfq.calibrate(q, rows, progress=False)
    q.compile("sgd", "mse")
    before = [v.numpy() for v in q.trainable_variables]
    q.fit(rows, np.zeros((len(rows), 6, 6, 5), np.float32), verbose=0)
    moved = [np.any(a != b) for a, b in zip(before, q.trainable_variables, strict=True)]
    assert all(moved)
    q.save(tmp_path / "q.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "q.keras")(rows), q(rows))


def test_inner_layers_of_a_marked_layer_are_quantized(rng):
    x = keras.Input(SHAPE)
    marked = tfq.quantize_annotate_layer(Block())
    q = tfq.quantize_apply(keras.Model(x, layers.Conv2D(2, 1)(marked(x))))
    assert sum(isinstance(layer, layers.Conv2D) for layer in wrapped(q)) == 2


class Tokens(layers.Layer):
    """Patches behind a class token, with positions, as a vision transformer starts."""

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, 1, 4), initializer="random_normal")
        self.gain = self.add_weight(shape=(4,), initializer="random_uniform")
        self.positions = layers.Embedding(37, 4)
        self.built = True

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        y = self.gain * ops.reshape(x, (batch, height * width, channels))
        y = ops.concatenate([ops.tile(self.token, (batch, 1, 1)), y], axis=1)
        return y + self.positions(ops.arange(37)[None])


def test_a_batch_size_in_a_call_stands_for_any(rng, tmp_path):
    x = keras.Input(SHAPE)
    model, rows = keras.Model(x, layers.Dense(3)(Tokens()(layers.Conv2D(4, 1)(x)))), data(rng)
    q, report = converted(model, rows, tmp_path)
    assert not report.float_operators
    assert report.end_to_end.differing == 0
    assert_close(q, model, rows)
    assert_close(q, model, rows[:7])
    token = next(x for x in wrapped(q) if x.trainable_variables and x.name.endswith("_0"))
    np.testing.assert_array_equal(token.get_weights()[0], model.layers[2].token)


class Past(layers.Layer):
    """The mean of the steps up to each one, and positions."""

    def build(self, input_shape):
        self.dense = layers.Dense(4)
        self.built = True

    def call(self, x):
        time = ops.arange(ops.shape(x)[1], dtype="float32")
        past = ops.cast(time[:, None] >= time[None], "float32") / (time[:, None] + 1.0)
        rows = ops.broadcast_to(past[None], (ops.shape(x)[0], *ops.shape(past)))
        return ops.matmul(rows, self.dense(x)) + 0.1 * time[:, None]


def test_a_free_length_in_a_call_stands_for_any(rng, tmp_path):
    x = keras.Input((None, 4))
    model, rows = keras.Model(x, Past()(x)), rng.normal(size=(32, 6, 4)).astype(np.float32)
    q, report = converted(model, rows, tmp_path)
    assert not report.float_operators
    assert report.end_to_end.largest <= 1
    assert_close(q, model, rows)
    assert_close(q, model, rows[:, :3])
    with pytest.raises(ValueError, match=r"read for up to 512 steps\. Received: 513 steps"):
        q(np.zeros((1, 513, 4), np.float32))


def test_a_length_around_a_model_of_free_length_is_the_length_inside(rng):
    x, y = keras.Input((None, 4)), keras.Input((6, 4))
    q = tfq.quantize_model(keras.Model(y, keras.Model(x, Past()(x))(y)))
    constant = next(x for x in wrapped(q) if "constant" in x.name)
    assert constant.shape == (1, 6, 6)


class Forgetful(layers.Layer):
    """A layer whose settings are not those of its constructor."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "size": self.units}


def test_a_layer_with_a_wrong_config_is_copied_by_its_attributes(rng):
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2)(Forgetful(4, name="forgetful")(x)))
    q, rows = tfq.quantize_model(model, skip=["forgetful"]), rng.normal(size=(8, 3))
    tfq.calibrate(q, rows.astype(np.float32), progress=False)
    assert_close(q, model, rows)


class Unreadable(keras.Model):
    def __init__(self):
        super().__init__(name="unreadable")
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(tf.nn.relu(x))


def test_a_subclassed_model_that_was_not_built_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'own' \(Model\) is not built: call it on data once"):
        tfq.quantize_model(Model())


def test_a_model_whose_call_needs_real_tensors_is_refused_by_name(rng):
    model = Unreadable()
    model(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"'unreadable' \(Unreadable\), whose `call` cannot be r"):
        tfq.quantize_model(model)
