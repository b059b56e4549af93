"""Trained models: batch norm folds exactly, and the file holds what training learned."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.litert.flatbuffer import File

IMAGE = (12, 12, 3)
BITS = {"w8a8": 8, "w4a8": 4}
KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
FAMILIES = [
    (None, None),
    ("abs_max", "moving_average"),
    ("learned_step", "learned_step"),
    ("learned_threshold", "learned_threshold"),
    ("dorefa", "learned_clip"),
]


def network():
    x = inputs = keras.Input(IMAGE, name="image")
    for number, kind in enumerate(["conv", "depthwise", "conv"]):
        if kind == "conv":
            x = layers.Conv2D(8, 3, use_bias=False, name=f"conv_{number}")(x)
        else:
            x = layers.DepthwiseConv2D(3, padding="same", name=f"depthwise_{number}")(x)
        x = layers.BatchNormalization(momentum=0.8, name=f"bn_{number}")(x)
        x = layers.ReLU(name=f"relu_{number}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.BatchNormalization(name="bn")(layers.Dense(8, name="dense")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.ReLU()(x)))


def trained(rng, scheme, weights=None, activations=None):
    """Returns a model whose batch norms begin with gains of both signs, after some training."""
    model = network()
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            gamma = layer.gamma
            gamma.assign(rng.uniform(0.5, 1.5, gamma.shape) * rng.choice([-1, 1], gamma.shape))
    x = rng.normal(size=(96, *IMAGE)).astype(np.float32)
    y = (x.mean(axis=(1, 2)).argmax(-1)).astype(int)
    q = tfq.quantize_model(
        model, scheme, weight_quantizer=weights, activation_quantizer=activations
    )
    tfq.calibrate(q, x, observer="min_max", bias_correction=False, progress=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q.compile(keras.optimizers.Adam(3e-3), loss)
    q.fit(x, y, 16, 2, verbose=0)
    return q


def columns(kernel, depthwise):
    """Returns a kernel as rows by output channels."""
    return (kernel[..., 0] if depthwise else kernel).reshape(
        -1, kernel.shape[-2 if depthwise else -1]
    )


@pytest.mark.parametrize(
    ("scheme", "weights", "activations"),
    # Of eight bits the families that round other values or other ranges; the same code folds.
    [
        pytest.param(scheme, *pair, marks=pytest.mark.long if scheme == "w8a8" and i % 4 else ())
        for scheme in BITS
        for i, pair in enumerate(FAMILIES)
    ],
)
def test_folded_integers_are_those_of_training(scheme, weights, activations, rng, tmp_path):
    q = trained(rng, scheme, weights, activations)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.end_to_end.differing == 0
    assert not any(layer.parity and layer.parity.differing for layer in report.layers)
    file = File((tmp_path / "model.tflite").read_bytes())
    kernels = [op for op in file.ops if op.name in KERNELS]
    wrappers = [w for w in q.layers if isinstance(w, tfq.QuantizeWrapper) and w.weight_quantizers]
    for op, wrapper in zip(kernels, wrappers, strict=True):
        depthwise, norm = op.name == "DEPTHWISE_CONV_2D", wrapper.batch_norm
        ((variable, quantizer),) = wrapper.weight_quantizers
        limit = 127 if depthwise else 2 ** (BITS[scheme] - 1) - 1
        w = columns(np.asarray(quantizer.latent(variable.value), np.float64), depthwise)
        scale = np.asarray(quantizer.params(variable.value).scale, np.float64).ravel()
        gain = np.ones_like(scale)
        if norm is not None:
            gain = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
        trained_with = np.clip(np.rint(w / scale), -limit, limit) * np.sign(gain)
        after_folding = np.clip(np.rint(w * gain / (scale * np.abs(gain))), -limit, limit)
        stored = file.constant(op.inputs[1])
        stored = stored.reshape(len(stored), -1).T if not depthwise else stored.reshape(w.shape)
        tie = np.abs(np.abs(w / scale) % 1 - 0.5) < 1e-4  # Rounds either way by a last place.
        assert tie.sum() <= max(1, 0.02 * tie.size)
        np.testing.assert_array_equal(stored[~tie], trained_with[~tie])
        np.testing.assert_array_equal(stored[~tie], after_folding[~tie])
        np.testing.assert_allclose(file.scale(op.inputs[1]), scale * np.abs(gain), rtol=1e-5)


# Each width once, and each family; narrow ones twice.
WIDTHS = [
    (4, 4, "moving_average"),
    (3, 5, "learned_step"),
    (2, 2, "learned_clip"),
    (2, 2, "moving_average"),
    (8, 6, "learned_step"),
]
FAMILIES_OF_ACTIVATIONS = ("moving_average", "learned_step", "learned_clip")
EVERY_WIDTH = [
    pytest.param(*bits, family, marks=() if (*bits, family) in WIDTHS else pytest.mark.long)
    for bits in ((4, 4), (3, 5), (2, 2), (8, 6))
    for family in FAMILIES_OF_ACTIVATIONS
]


@pytest.mark.parametrize(("weight_bits", "activation_bits", "activations"), EVERY_WIDTH)
def test_any_width_trains_and_its_file_agrees(
    weight_bits, activation_bits, activations, rng, tmp_path
):
    x = inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3)(x)))
    x = layers.MaxPooling2D()(layers.Add()([x, layers.Conv2D(6, 3, padding="same")(x)]))
    outputs = layers.Dense(3, activation="softmax")(layers.Flatten()(x))
    scheme = tfq.Scheme("own", weight_bits, activation_bits, weight_quantizer="learned_step")
    q = tfq.quantize_model(keras.Model(inputs, outputs), scheme, activation_quantizer=activations)
    rows = rng.uniform(0, 1, (64, 8, 8, 3)).astype(np.float32)
    tfq.calibrate(q, rows, observer="min_max", bias_correction=False, progress=False)
    q.compile("adam", "sparse_categorical_crossentropy")
    q.fit(rows, rows.mean(axis=(1, 2)).argmax(-1), 16, 1, verbose=0)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert not report.float_operators
    assert report.end_to_end.differing == 0
    assert not report.op_by_op.differing
    wrapper = next(x for x in q.layers if isinstance(x, tfq.QuantizeWrapper))
    used = wrapper(q.layers[1](rows))
    assert len(np.unique(used)) <= 2**activation_bits


def test_a_channel_that_training_killed_is_as_dead_in_the_file(rng, tmp_path):
    q = trained(rng, "w4a8")
    wrapper = next(w for w in q.layers if getattr(w, "batch_norm", None) is not None)
    wrapper.batch_norm.gamma.assign(wrapper.batch_norm.gamma.value * 0)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.end_to_end.differing == 0
