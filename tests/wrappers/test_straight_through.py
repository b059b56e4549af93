"""Gradients of quantized models at inference: integers forward, straight-through backward."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfquant as tfq

SCHEMES = sorted(tfq.SCHEMES)


def small_network(batch_norm=True):
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 3, padding="same", use_bias=not batch_norm)(x)
    if batch_norm:
        x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Add()([x, y])
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(32, 1, activation="relu6")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def recurrent():
    x = inputs = keras.Input((5, 6))
    x = layers.LSTM(8, return_sequences=True)(x)
    x = layers.GRU(8)(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def attention():
    x = inputs = keras.Input((6, 16))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)])
    x = layers.LayerNormalization()(x)
    x = layers.Dense(16, activation="gelu")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def quantized(model, scheme, rng, **kwargs):
    q = tfq.quantize_model(model, scheme, **kwargs)
    x = rng.normal(size=(16, *model.input_shape[1:])).astype("float32")
    return tfq.calibrate(q, x, progress=False), tf.constant(x)


def gradients(q, x, training):
    """Output, and the gradients for the input and each trainable variable."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = q(x, training=training)
        loss = tf.reduce_sum(y * tf.range(1.0, y.shape[-1] + 1))
    found = tape.gradient(loss, [x, *q.trainable_variables])
    return y.numpy(), [None if g is None else tf.convert_to_tensor(g).numpy() for g in found]


def cosine(a, b):
    return np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_inference_has_gradients_for_the_input_and_every_weight(scheme, rng):
    q, x = quantized(small_network(), scheme, rng)
    before = [v.numpy() for v in q.variables]
    exact = q(x, training=False).numpy()
    y, found = gradients(q, x, training=False)
    assert all(g is not None and np.isfinite(g).all() for g in found)
    assert np.any(found[0])
    np.testing.assert_array_equal(y, exact)
    for v, old in zip(q.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), old)  # Nothing moved.


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16"])
@pytest.mark.parametrize("make", [lambda: small_network(False), recurrent, attention])
def test_inference_has_the_gradients_of_a_training_step(make, scheme, rng):
    q, x = quantized(make(), scheme, rng)
    x = 0.5 * x  # Inside the ranges: at their ends rounding decides whether there is a gradient.
    _, inference = gradients(q, x, training=False)
    _, training = gradients(q, x, training=True)
    for a, b in zip(inference, training, strict=True):
        assert (a is None) == (b is None)
        if a is not None and np.linalg.norm(b) > 1e-6:
            # A maximum or a clamp falls the other way where exact values differ by a step.
            assert cosine(a, b) > 0.97


def test_the_gradient_of_a_dense_layer_is_its_quantized_kernel(rng):
    inputs = keras.Input((5,))
    q, x = quantized(keras.Model(inputs, layers.Dense(3, activation="relu")(inputs)), "w8a8", rng)
    x = 0.3 * x  # Inside every range.
    y, (dx, dkernel, dbias) = gradients(q, x, training=False)
    w = q.layers[-1].layer.kernel.numpy()
    scale = np.abs(w).max(0) * q.layers[-1].weight_quantizers[0][1].clip.numpy() / 127
    kernel = np.clip(np.round(w / scale), -127, 127) * scale
    upstream = np.arange(1, 4) * (y > 0)
    grid = q.layers[1].quantizer
    seen = grid.call(x).numpy()
    np.testing.assert_allclose(dx, upstream @ kernel.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dkernel, seen.T @ upstream, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dbias, upstream.sum(0), rtol=1e-6)


@pytest.mark.parametrize("family", ["moving_average", "learned_step", "learned_threshold"])
def test_batch_norm_and_ranges_stand_still(family, rng):
    q, x = quantized(small_network(), "w8a8", rng, activation_quantizer=family)
    before = [v.numpy() for v in q.variables]
    gradients(q, 3 * x, training=False)
    for v, old in zip(q.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), old)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradients_are_those_of_a_traced_function(jit_compile, rng):
    q, x = quantized(small_network(), "w4a8", rng)
    variables = q.trainable_variables

    @tf.function(jit_compile=jit_compile)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = q(x, training=False)
            loss = tf.reduce_sum(y * tf.range(1.0, y.shape[-1] + 1))
        return y, tape.gradient(loss, [x, *variables])

    y, traced = step(x)
    exact, eager = gradients(q, x, training=False)
    np.testing.assert_array_equal(y, exact)
    for a, b in zip(traced, eager, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # Sums in another order.


@pytest.mark.parametrize("scheme", ["w8a8", "w8", "w4_g32"])
def test_a_frozen_layer_passes_gradients_on(scheme, rng):
    model = small_network()
    model.layers[1].trainable = False
    q, x = quantized(model, scheme, rng)
    _, found = gradients(q, x, training=False)
    assert np.any(found[0])
    assert len(found) == 1 + len(q.trainable_variables)


def test_losses_of_activities_are_those_of_the_layers(rng):
    inputs = keras.Input((4,))
    regularized = layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.1))
    q, x = quantized(keras.Model(inputs, regularized(inputs)), "w8", rng)
    q(x, training=False)
    y = q.layers[-1].layer(x).numpy()  # 8-bit weights are near.
    np.testing.assert_allclose(float(q.losses[0]), 0.1 * np.sum(y**2) / len(y), rtol=0.05)


def test_an_embedding_of_integers_has_gradients_for_its_table(rng):
    inputs = keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(10, 4)(inputs))
    q = tfq.quantize_model(keras.Model(inputs, layers.Dense(2)(x)), "w8a8")
    ids = rng.integers(0, 10, (8, 6)).astype("int32")
    tfq.calibrate(q, ids, progress=False)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(q(ids, training=False))
    table = tf.convert_to_tensor(tape.gradient(loss, q.trainable_variables)[0]).numpy()
    used = np.isin(np.arange(10), ids)
    np.testing.assert_array_equal(np.any(table, axis=1), used)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_foolbox_attacks_a_quantized_model(rng):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    model = small_network()
    x = rng.uniform(size=(128, 8, 8, 3)).astype("float32")
    labels = (x[..., 0].mean((1, 2)) > x[..., 1].mean((1, 2))).astype("int32")
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(x, labels, epochs=20, batch_size=32, verbose=0)
    q = tfq.calibrate(tfq.quantize_model(model, "w8a8"), x, progress=False)
    logits = lambda v: tf.math.log(q(v, training=False) + 1e-6)  # noqa: E731
    attacked = foolbox.TensorFlowModel(logits, bounds=(0, 1), device="/cpu:0")
    images, truth = tf.constant(x[:32]), tf.constant(labels[:32])
    accuracy = lambda v: np.mean(np.argmax(q.predict(v, verbose=0), -1) == truth)  # noqa: E731
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.02, steps=10)
    adversarial = attack.run(attacked, images, truth, epsilon=0.1)
    assert accuracy(images) > 0.8
    assert accuracy(adversarial) < accuracy(images) - 0.3
