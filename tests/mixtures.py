"""What tests of mixed schemes make their models with."""

import math

import keras
import numpy as np
from keras import layers


def network(seed=0):
    """Convolutions, a depthwise one, a residual sum and dense layers."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = short = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    x = layers.Add(name="sum")([x, short])
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="last")(x))


def images(rng, count=64):
    return rng.normal(size=(count, 8, 8, 3)).astype("float32")


def decibels(expected, received):
    signal = np.mean((expected - expected.mean(axis=0)) ** 2)
    return 10 * math.log10(signal / np.mean((expected - received) ** 2))


def logits(model):
    """Returns the model without its softmax."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.get_layer("last").activation = keras.activations.linear
    return copy
