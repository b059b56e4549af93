"""Layers and operations that LiteRT has integer kernels for leave nothing float."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq
from tfquant.litert.flatbuffer import File

GATES = ("tanh", "sigmoid")
ones = {"bias_initializer": "ones"}
CASES = {
    "attention of rank 4": ((4, 6, 8), lambda x: layers.MultiHeadAttention(2, 4)(x, x)),
    "attention of columns": (
        (4, 6, 8),
        lambda x: layers.MultiHeadAttention(2, 4, attention_axes=(1,))(x, x),
    ),
    "attention of rows": (
        (4, 6, 8),
        lambda x: layers.MultiHeadAttention(2, 4, attention_axes=(2,))(x, layers.ReLU()(x)),
    ),
    "depth to space": ((4, 4, 3), lambda x: ops.depth_to_space(layers.Conv2D(12, 1)(x), 2)),
    "depth to space of tf.nn": (
        (4, 4, 12),
        lambda x: layers.Lambda(lambda y: tf.nn.depth_to_space(y, 2), (8, 8, 3))(
            layers.Conv2D(12, 1)(x)
        ),
    ),
    "convolution first": ((32, 4), layers.Conv1D(8, 3, padding="same")),
    "depthwise first": ((32, 4), layers.DepthwiseConv1D(3, padding="same")),
    "dilated twice": (
        (16, 4),
        lambda x: layers.Multiply()(
            [layers.Conv1D(6, 2, padding="causal", dilation_rate=2, activation=a)(x) for a in GATES]
        ),
    ),
    "dilated images": (
        (12, 12, 3),
        lambda x: layers.Add()(
            [layers.Conv2D(4, 3, padding=p, dilation_rate=2)(x) for p in ("same", "same")]
        ),
    ),
    "hard sigmoid": ((8, 8, 3), layers.Conv2D(4, 3, activation="hard_sigmoid")),
    "hard_sigmoid of ops": ((8, 8, 3), lambda x: ops.hard_sigmoid(layers.Conv2D(4, 3)(x))),
    "one filter": ((32, 4), layers.Conv1D(1, 5, padding="same", **ones)),
    "one filter, causal": ((32, 4), layers.Conv1D(1, 3, padding="causal", dilation_rate=2, **ones)),
    "one filter, transposed": ((32, 4), layers.Conv1DTranspose(1, 4, 2, padding="same", **ones)),
    "patches": ((16, 16, 3), lambda x: layers.Dense(8)(ops.image.extract_patches(x, size=4))),
    "pooling first": ((32, 4), layers.MaxPooling1D(2)),
    "separable first": ((32, 4), layers.SeparableConv1D(8, 3, padding="same")),
    "unit norm": ((6, 8), layers.UnitNormalization(axis=1)),
    "unit norm of images": ((4, 6, 8), layers.UnitNormalization(axis=(1, 2))),
    "unit norm of rows": ((4, 6, 8), layers.UnitNormalization(axis=(2, 3))),
    "capsules": (
        (6, 8),
        lambda x: ops.einsum("nid,ijdk->nijk", x, np.linspace(-1, 1, 576).reshape(6, 3, 8, 4)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_float(rng, name, tmp_path):
    shape, function = CASES[name]
    x, data = keras.Input(shape), rng.normal(size=(32, *shape)).astype("float32")
    model = keras.Model(x, function(x))
    q = tfq.quantize_model(model)
    tfq.calibrate(q, data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert not report.float_operators
    assert not report.lost_layers
    noise = np.sum((np.asarray(model(data)) - np.asarray(q(data))) ** 2)
    assert 10 * np.log10(np.sum(np.asarray(model(data)) ** 2) / noise) > 27


def test_a_part_of_a_split_that_nobody_reads_is_of_integers(rng, tmp_path):
    x = keras.Input((6, 12))
    first, _, last = ops.split(layers.Dense(12)(x), 3, axis=-1)
    q = tfq.quantize_model(keras.Model(x, layers.Add()([first, last])))
    tfq.calibrate(q, rng.normal(size=(16, 6, 12)).astype("float32"), progress=False)
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    file = File((tmp_path / "m.tflite").read_bytes())
    (split,) = [op for op in file.ops if op.name in ("SPLIT", "SPLIT_V")]
    assert {file.type(i) for i in split.outputs} == {"INT8"}


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_resized_images_are_exact_behind_training(interpolation, scheme, rng, tmp_path):
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = ops.image.resize(y, (11, 13), interpolation=interpolation)
    model = keras.Model(x, layers.Conv2D(2, 3)(y))
    data = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    q = tfq.quantize_model(model, scheme)
    tfq.calibrate(q, data, progress=False)
    q.compile(keras.optimizers.SGD(0.05), "mse")
    q.fit(data, 0.5 * np.asarray(model(data)), epochs=2, verbose=0)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=data, progress=False)
    assert report.op_by_op.differing == report.end_to_end.differing == 0
