"""Advice: followed, it raises the score of a model with a planted fault."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq

CLASSES = 8


def network():
    """Three convolutions and a dense layer, whose classes are about as frequent."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((8, 8, 3))
    for name, channels in (("one", 16), ("two", 16), ("three", 16)):
        x = layers.Conv2D(channels, 3, padding="same", activation="relu", name=name)(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(CLASSES, name="head")(x))
    y = np.array(model(rows(np.random.default_rng(1), 256)))
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights(
        [kernel / y.std(axis=0), bias - (y / y.std(axis=0)).mean(0)]
    )
    return model


def rows(rng, count):
    coarse = rng.normal(size=(count, 2, 2, 3)).astype("float32")
    return np.kron(coarse, np.ones((1, 4, 4, 1), np.float32))


def wide_channel(model):
    """One channel of "one" is 300 times as large as the others, and nobody reads it."""
    kernel, bias = model.get_layer("one").get_weights()
    kernel[..., 0] *= 300
    model.get_layer("one").set_weights([kernel, bias])
    kernel, bias = model.get_layer("two").get_weights()
    kernel[:, :, 0] = 0
    model.get_layer("two").set_weights([kernel, bias])


def large_weights(model):
    """Each channel of "two" has a weight 40 times the others', of an input that is always 0."""
    kernel, bias = model.get_layer("one").get_weights()
    kernel[..., 0], bias[0] = 0, -1
    model.get_layer("one").set_weights([kernel, bias])
    kernel, bias = model.get_layer("two").get_weights()
    kernel[1, 1, 0] = 40 * np.abs(kernel).max()
    model.get_layer("two").set_weights([kernel, bias])


def score(model, recipe, seen, x):
    """Share of predictions that are the float model's."""
    q = tfq.calibrate(tfq.quantize_model(model, recipe), seen, progress=False)
    return np.mean(np.argmax(q(x), -1) == np.argmax(model(x), -1))


@pytest.mark.parametrize(
    ("plant", "scheme", "layer", "words"),
    [
        (wide_channel, "w8a8", "one", r"1 of 16 channels has a range \d+x the median's"),
        (large_weights, "w4a8", "two", r"16 of 16 channels have a weight of over 6 times"),
    ],
)
def test_advice_on_a_planted_fault_raises_the_score(plant, scheme, layer, words, rng):
    model, seen, x = network(), rows(rng, 64), rows(rng, 256)
    plant(model)
    found = tfq.sensitivity(model, seen, choices=[scheme], progress=False)
    advice = found.advice[0]
    assert advice.layer == layer
    assert re.search(words, advice.words), advice.words
    assert f"{advice.gain:+.1f} dB" in advice.words
    before = score(model, scheme, seen, x)
    after = score(model, advice.apply(scheme), seen, x)
    assert after > before + 0.05


def test_advice_gains_what_it_says(rng):
    model, seen = network(), rows(rng, 64)
    large_weights(model)
    found = tfq.sensitivity(model, seen, choices=["w4a8"], effort="fast", progress=False)

    def ratio(recipe):
        q = tfq.quantize(model, seen, recipe, effort="fast", progress=False)
        y, z = np.array(model(seen)), np.array(q(seen))
        return -10 * np.log10(np.mean((y - z) ** 2) / np.mean((y - y.mean(0)) ** 2))

    gained = ratio(found.advice[0].apply("w4a8")) - ratio("w4a8")
    # Ranges are those of quantized weights here, of float ones there.
    assert gained == pytest.approx(found.advice[0].gain, abs=1.5)


def test_a_model_without_faults_gets_little_advice(rng):
    found = tfq.sensitivity(network(), rows(rng, 64), choices=["w8a8"], progress=False)
    assert all(advice.gain >= 0.5 for advice in found.advice)
    assert not any("x the" in advice.words for advice in found.advice)
