"""Subclassed models keep the dtypes of their inputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq
from tfquant.reading.subclassed import readable


class Classifier(keras.Model):
    """Looks tokens up and averages them."""

    def __init__(self):
        super().__init__()
        self.table, self.head = layers.Embedding(1000, 8), layers.Dense(3)

    def call(self, ids):
        return self.head(ops.mean(self.table(ids), axis=1))


class Mixed(keras.Model):
    """Reads a dict of ids, a condition and real numbers; the ids by a model inside as well."""

    def __init__(self):
        super().__init__()
        self.inside, self.head = Classifier(), layers.Dense(3)
        self.table = layers.Embedding(1000, 8)

    def call(self, inputs):
        ids = ops.where(inputs["keep"], inputs["ids"][:, ::-1], 0)
        own = ops.mean(self.table(ids), axis=1)
        return self.head(ops.concatenate([self.inside(inputs["ids"]), own, inputs["real"]], -1))


class Words(keras.Model):
    """Looks strings up."""

    def __init__(self):
        super().__init__()
        self.find = layers.StringLookup(vocabulary=["a", "b"])
        self.table, self.head = layers.Embedding(4, 8), layers.Dense(3)

    def call(self, words):
        return self.head(ops.mean(self.table(self.find(words)), axis=1))


class Image(keras.Model):
    """Scales pixels."""

    def __init__(self):
        super().__init__()
        self.stem = layers.Conv2D(4, 3)

    def call(self, x):
        return self.stem(ops.cast(x, "float32") / 255.0)


@keras.saving.register_keras_serializable(package="tfquant_tests")
class Lookup(layers.Layer):
    """A layer of one's own that looks up what it is given one higher."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = layers.Embedding(1001, 8)

    def call(self, x):
        return self.table(x + 1)


class Wrapped(keras.Model):
    """Its ids are read inside a layer of one's own."""

    def __init__(self):
        super().__init__()
        self.look, self.head = Lookup(), layers.Dense(3)

    def call(self, ids):
        return self.head(ops.mean(self.look(ids), axis=1))


def spread_tables(model, rng):
    """Gives the model tables whose rows tell ids apart."""
    for layer in model.layers:
        layer.set_weights([rng.normal(size=w.shape).astype(w.dtype) for w in layer.get_weights()])


def sqnr(expected, got):
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    return 10 * np.log10(np.sum(expected**2) / np.sum((expected - got) ** 2))


@pytest.mark.parametrize("make", [Classifier, Wrapped])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_ids_of_a_subclassed_model_reach_their_table_unchanged(rng, make, dtype, tmp_path):
    model, ids = make(), rng.integers(0, 1000, (64, 7)).astype(dtype)
    expected = model(ids)
    spread_tables(model, rng)
    expected = model(ids)
    q = tfq.quantize_model(model)
    assert q.input.dtype == "int32"
    tfq.calibrate(q, ids, progress=False)
    # Ids on an 8-bit grid would hit other rows: below 0 dB.
    assert sqnr(expected, q(ids)) > 30
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)


def test_each_input_of_a_dict_has_the_dtype_it_is_read_with(rng):
    inputs = {
        "ids": rng.integers(0, 1000, (64, 7)).astype("int32"),
        "keep": rng.uniform(size=(64, 7)) > 0.5,
        "real": rng.normal(size=(64, 3)).astype("float32"),
    }
    model = Mixed()
    expected = model(inputs)
    q = tfq.quantize_model(model)
    assert [(x.name, x.dtype) for x in q.inputs] == [
        ("ids", "int32"),
        ("keep", "bool"),
        ("real", "float32"),
    ]
    tfq.calibrate(q, inputs, progress=False)
    assert sqnr(expected, q(inputs)) > 25


def test_strings_of_a_subclassed_model_are_strings():
    model, words = Words(), np.array([["a", "b"], ["b", "c"]] * 8, object)
    expected = model(tf.constant(words))
    q = tfq.quantize_model(model)
    assert q.input.dtype == "string"
    tfq.calibrate(q, words, progress=False)
    assert sqnr(expected, q(tf.constant(words))) > 30


def test_pixels_of_a_subclassed_model_may_be_read_as_real_numbers(rng):
    model, pixels = Image(), rng.integers(0, 256, (32, 8, 8, 3)).astype("uint8")
    expected = model(pixels)
    q = tfq.quantize_model(model)
    tfq.calibrate(q, pixels, progress=False)
    assert sqnr(expected, q(pixels)) > 35


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool", "float32"])
def test_a_symbolic_call_says_the_dtype(dtype):
    model = Image()
    model(keras.Input((8, 8, 3), dtype=dtype))
    assert readable(model).input.dtype == dtype
