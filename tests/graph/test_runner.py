"""A model run call by call, against Keras's own run of it."""

import weakref

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.graph.runner import Runner


def branches():
    x = keras.Input((6,))
    shared = layers.Dense(5, activation="relu")
    left = shared(x)
    right = shared(keras.ops.flip(x, axis=1))
    both = layers.Concatenate()([left, right, keras.ops.abs(left) * 2.0])
    return keras.Model(x, {"sum": layers.Dense(3)(both), "left": left})


def masked():
    ids = keras.Input((7,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(ids)
    x = layers.LSTM(5, return_sequences=True)(x)
    return keras.Model(ids, layers.GlobalAveragePooling1D()(x))


def several_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, layers.Dense(3)(layers.Dropout(0.5)(inner_input)))
    return keras.Model({"b": b, "a": a}, [inner(a) - inner(b), a])


def sequential():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()])


@pytest.mark.parametrize("build", [branches, masked, several_inputs, sequential])
def test_outputs_are_those_of_keras(build, rng):
    model = build()
    arrays = [
        rng.integers(0, 3, (5, *x.shape[1:]))
        if x.dtype == "int32"
        else rng.normal(size=(5, *x.shape[1:]))
        for x in model.inputs
    ]
    alone = isinstance(model, keras.Sequential)
    given = arrays[0] if alone else keras.tree.pack_sequence_as(model.input, arrays)
    expected = model(given, training=False)
    received = Runner(model)(arrays)
    for y, other in zip(received, keras.tree.flatten(expected), strict=True):
        np.testing.assert_array_equal(y, other)


def infers(runner):
    return sum(call.run is not call.layer for call in runner.calls)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16", "w8a8_dynamic", "w8"])
def test_quantized_layers_that_no_mask_travels_give_the_same_without_keras(scheme, rng):
    model = branches()
    x = rng.normal(size=(16, 6)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model, scheme), x, progress=False)
    runner = Runner(q)
    assert infers(runner) >= 3
    for y, other in zip(runner([x]), keras.tree.flatten(q(x)), strict=True):
        np.testing.assert_array_equal(y, other)


@pytest.mark.parametrize("mask_zero", [True, False])
def test_quantized_layers_that_a_mask_may_travel_are_called_by_keras(mask_zero, rng):
    ids = keras.Input((7,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=mask_zero)(ids)
    model = keras.Model(ids, layers.GlobalAveragePooling1D()(layers.Activation("relu")(x)))
    rows = rng.integers(0, 3, (16, 7))
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    runner = Runner(q)
    assert infers(runner) == (0 if mask_zero else 3)
    np.testing.assert_array_equal(runner([rows])[0], q(rows))


def test_what_nobody_reads_any_more_is_forgotten(rng):
    x = inputs = keras.Input((4,))
    for _ in range(6):
        x = layers.Dense(4)(x)
    model, made, alive = keras.Model(inputs, x), [], []

    def see(layer, args, kwargs, outputs):
        made.append(weakref.ref(outputs))
        alive.append(sum(tensor() is not None for tensor in made))

    Runner(model)([rng.normal(size=(2, 4))], see)
    assert len(alive) == 6 and max(alive) == 2


def test_each_call_is_seen_in_its_order(rng):
    seen = []
    model = branches()
    Runner(model)([rng.normal(size=(2, 6))], lambda layer, *_: seen.append(layer.name))
    dense, head = (layer.name for layer in model.layers if isinstance(layer, layers.Dense))
    assert seen.count(dense) == 2 and seen[-1] == head


def test_reading_a_model_leaves_its_layers_as_they_were():
    model = branches()
    before = [layer.output for layer in model.layers]
    Runner(model)
    assert all(x is layer.output for x, layer in zip(before, model.layers, strict=True))
    assert len(model.layers) == len(before)
