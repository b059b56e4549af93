"""Models on packed weights, beside the quantized models that they are made from."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfquant as tfq
from tfquant.lowbit.layers import PackedConv, PackedDense, PackedEmbedding
from tfquant.numerics import packing
from tfquant.packed.layers import store, why_not
from tfquant.quantizers import Dynamic
from tfquant.registry import schemes
from tfquant.wrappers import DynamicKernel, IntegerKernel

STATIC = ("w8a8", "w4a8", "w2a8", "w8a16")
REAL = ("w8", "w4", "w4_g32", "w8a8_dynamic", "w4a8_g32", "f16")


@pytest.fixture(scope="module")
def network():
    """A float model with every kind of kernel, batch norms of either sign among them."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", strides=2, use_bias=False, name="conv")(x)
    x = layers.ReLU(6)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.Conv2D(8, 1, use_bias=False, name="conv1x1")(x)
    x = layers.Add()([x, layers.ReLU()(layers.BatchNormalization()(y))])
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dense(24, activation="gelu", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(5, activation="softmax", name="head")(x), name="net")
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("gamma", "beta", "moving_mean"):
            weight.assign(rng.normal(size=weight.shape))
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(48, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def quantized(network, images):
    return quantize(network, "w4a8", images)


def quantize(model, scheme, data):
    q = tfq.quantize_model(model, scheme)
    if tfq.SCHEMES[scheme].static:
        tfq.calibrate(q, data, progress=False)
    return q


def inner_layers(model, kind):
    around = (DynamicKernel, IntegerKernel)
    found = [layer.layer if isinstance(layer, around) else layer for layer in model.layers]
    return [layer for layer in found if isinstance(layer, kind)]


@pytest.mark.parametrize("scheme", STATIC)
def test_static_activations_give_the_same_bits(network, images, scheme):
    q = quantize(network, scheme, images)
    packed = tfq.to_packed(q)
    np.testing.assert_array_equal(packed.predict(images, verbose=0), q.predict(images, verbose=0))
    assert len(inner_layers(packed, PackedDense)) == len(inner_layers(packed, PackedConv)) == 2


SMALL = {
    "dense": ((8,), [lambda: layers.Dense(16, activation="relu"), lambda: layers.Dense(4)]),
    "recurrent": ((3, 4), [lambda: layers.LSTM(8), lambda: layers.Dense(4)]),
    "recurrent of ten steps": ((10, 4), [lambda: layers.LSTM(8), lambda: layers.Dense(4)]),
}
LONG = {"recurrent of ten steps": pytest.mark.long}


@pytest.mark.parametrize("name", [pytest.param(x, marks=LONG.get(x, ())) for x in SMALL])
def test_the_file_of_a_small_packed_model_is_smaller_than_the_float_one(rng, name, tmp_path):
    shape, makers = SMALL[name]
    model = keras.Sequential([keras.Input(shape), *(make() for make in makers)])
    model.save(tmp_path / "float.keras")
    x = rng.normal(size=(16, *shape)).astype(np.float32)
    q = tfq.quantize_model(model, "w8a8")
    tfq.calibrate(q, x)
    packed = tfq.to_packed(q, tmp_path / "packed.keras")
    size = (tmp_path / "packed.keras").stat().st_size
    assert size < (tmp_path / "float.keras").stat().st_size
    again = keras.saving.load_model(tmp_path / "packed.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), packed.predict(x, verbose=0))


@pytest.mark.parametrize("scheme", REAL)
def test_real_activations_give_the_same_sums_in_another_order(network, images, scheme):
    q = quantize(network, scheme, images)
    packed = tfq.to_packed(q)
    # Sums of up to 72 products, five layers deep; a dynamic grid may move by an ulp with them.
    np.testing.assert_allclose(
        packed.predict(images, verbose=0), q.predict(images, verbose=0), atol=3e-6, rtol=1e-4
    )
    assert len(inner_layers(packed, PackedDense)) == (0 if scheme == "f16" else 2)


def test_a_dense_layer_of_real_activations_is_within_the_stated_bound(rng):
    model = keras.Sequential([keras.Input((300,)), layers.Dense(40)])
    x = rng.normal(size=(16, 300)).astype(np.float32)
    q = tfq.quantize_model(model, "w4")
    packed = tfq.to_packed(q)
    wrapper = q.layers[-1]
    kernel = wrapper.weight_quantizers[0][1].call(wrapper.layer.kernel.value).numpy()
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    magnitudes = np.abs(x).astype(np.float64) @ np.abs(kernel).astype(np.float64)
    bound = (300 + 4) * 2.0**-24 * magnitudes
    assert (np.abs(packed.predict(x, verbose=0) - exact) <= bound).all()


GROUPS = (
    ("w4_g32", None),
    ("w4a8_g32", None),
    ("w4a8_g32", "abs_max"),
    (tfq.Scheme("w2_g64", 2, None, group_size=64), None),
    (tfq.Scheme("w8a8_g64", 8, 8, dynamic=True, group_size=64), "learned_threshold"),
    (tfq.Scheme("w4a8_static_g32", 4, 8, group_size=32), None),
)


@pytest.mark.parametrize(("scheme", "family"), GROUPS)
@pytest.mark.parametrize("rank", [2, 3])
def test_groups_are_packed_with_the_integers_and_scales_of_the_model(rng, scheme, family, rank):
    scheme = schemes.get(scheme)
    model = keras.Sequential(
        [keras.Input((128,) if rank == 2 else (5, 128)), layers.Dense(20, name="dense")]
    )
    model.layers[-1].bias.assign(rng.normal(size=20))
    x = (rng.normal(size=(16, *model.input_shape[1:])) + 0.3).astype(np.float32)
    q = tfq.quantize_model(model, scheme, weight_quantizer=family)
    if scheme.static:
        tfq.calibrate(q, x, bias_correction=False, progress=False)
    packed = tfq.to_packed(q)
    # By hand, from the float weights: integers of the groups, as numpy has them.
    wrapper = q.layers[-1]
    w, size = wrapper.layer.kernel.numpy(), scheme.group_size
    ((_, quantizer),) = wrapper.weight_quantizers
    steps = np.asarray(quantizer.steps(w))
    assert steps.shape == (128 // size, 20)
    top = 2 ** (scheme.weight_bits - 1) - 1
    integers = np.rint(w / np.repeat(steps, size, axis=0)).clip(-top - (top == 1), top)
    (dense,) = [
        getattr(layer, "layer", layer)
        for layer in packed.layers
        if isinstance(layer, (DynamicKernel, PackedDense))
    ]
    layout = {"num_bits": scheme.weight_bits, "group_size": size, "k": 128, "n": 20}
    stored, scale = packing.unpack_matmul(dense.packed.numpy(), **layout)
    np.testing.assert_array_equal(stored, integers)
    np.testing.assert_array_equal(scale, steps)  # Half precision holds them.
    # What the model computes, in double precision.
    if scheme.static:
        x = q.layers[1](x).numpy()
    read = Dynamic(tfq.QuantSpec(8), by_vector=True)(x).numpy() if scheme.dynamic else x
    real = integers * np.repeat(steps, size, axis=0).astype(np.float64)
    exact = read.astype(np.float64) @ real + wrapper.layer.bias.numpy()
    width = np.maximum(x.max(-1, keepdims=True), 0) - np.minimum(x.min(-1, keepdims=True), 0)
    bound = (128 + 8) * 2.0**-24 * width * (np.abs(real).sum(axis=0) + 1)
    y = packed.predict(x, verbose=0)
    if scheme.static:
        step, zero_point = (float(v) for v in wrapper.output_quantizers[0][0].params())
        inside = exact.clip((-128 - zero_point) * step, (127 - zero_point) * step)
        assert (np.abs(y - inside) <= step / 2 + 1e-5).all()
        assert (np.abs(y - q.predict(x, verbose=0)) <= step * 1.01).all()
        return
    assert (np.abs(y - exact) <= bound).all()
    assert (np.abs(q.predict(x, verbose=0) - exact) <= bound).all()


def test_a_batch_norm_folded_into_groups_leaves_scales_of_16_bits(rng):
    x = inputs = keras.Input((6, 64))
    x = layers.Conv1D(24, 3, padding="same", use_bias=False, name="conv")(x)
    model = keras.Model(inputs, layers.ReLU()(layers.BatchNormalization()(x)))
    for weight in model.layers[2].weights:
        weight.assign(rng.uniform(0.3, 2, 24) * (1 if "variance" in weight.name else -1))
    data = rng.normal(size=(8, 6, 64)).astype(np.float32)
    q = tfq.quantize_model(model, "w4_g32")
    packed = tfq.to_packed(q)
    (conv,) = inner_layers(packed, PackedConv)
    assert conv.group_size == 32
    layout = {"num_bits": 4, "group_size": 32, "k": 192, "n": 24}
    integers, scale = packing.unpack_matmul(conv.packed.numpy(), **layout)
    np.testing.assert_array_equal(scale, tf.cast(tf.cast(scale, tf.bfloat16), tf.float32))
    assert np.abs(integers).max() == 7
    # Sums of 192 products of weights whose fold is rounded in another order.
    expected = q.predict(data, verbose=0)
    np.testing.assert_allclose(packed.predict(data, verbose=0), expected, atol=1e-4)
    # Nearest to the folded float kernel, at these scales.
    conv_layer, norm = model.layers[1], model.layers[2]
    gain = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    folded = (conv_layer.kernel.numpy() * gain).reshape(192, 24)
    off = folded / np.repeat(scale, 32, axis=0) - integers
    assert np.abs(off)[np.abs(integers) < 7].max() <= 0.5 + 1e-4


@pytest.mark.parametrize("scheme", ["w4_g32", "w4a8_g32"])
def test_models_of_mixed_precision_have_groups_and_train(rng, scheme):
    dense = lambda units: layers.Dense(units, dtype="mixed_bfloat16")  # noqa: E731
    model = keras.Sequential([keras.Input((64,)), dense(32), dense(8)])
    x = rng.normal(size=(16, 64)).astype(np.float32)
    q = tfq.quantize_model(model, scheme)
    ((_, quantizer),) = q.layers[-1].weight_quantizers
    assert quantizer.grouped and quantizer.steps().dtype == "float32"
    q.compile("sgd", "mse")
    q.fit(x, np.zeros((16, 8)), verbose=0)
    packed = tfq.to_packed(q)
    assert inner_layers(packed, PackedDense)[0].group_size == 32
    # The layers multiply in bfloat16, of 8 bits; the packed ones in integers or float32.
    expected = q.predict(x, verbose=0)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(packed.predict(x, verbose=0), expected, atol=largest / 64)


def test_a_layer_that_groups_do_not_divide_is_named(rng):
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(40, name="even"), layers.Dense(3, name="odd")]
    )
    for scheme in ("w4_g32", "w4a8_g32", tfq.Scheme("own", 4, 8, group_size=32)):
        q = tfq.quantize_model(model, scheme)
        if schemes.get(scheme).static:
            tfq.calibrate(q, rng.normal(size=(8, 64)), progress=False)
        report = tfq.to_packed(q).packing_report
        assert [(layer.name, layer.group_size) for layer in report.layers] == [
            ("even", 32),
            ("odd", 0),
        ]
        words = "a scale per channel: Dense odd: groups of 32 do not divide its 40 inputs"
        assert words in str(report).splitlines()
        assert "Dense even" not in str(report)
        assert [layer.granularity for layer in tfq.summarize(q).layers[-2:]] == [
            "per group of 32",
            "per channel (3)",
        ]


@pytest.mark.parametrize("scheme", ["w4_g32", "w4a8_g32"])
def test_groups_train_and_are_saved_and_loaded_packed_or_not(rng, scheme, tmp_path):
    inputs = keras.Input((64,))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(32, use_bias=False)(inputs)))
    model = keras.Model(inputs, layers.Dense(4)(x))
    data, labels = rng.normal(size=(64, 64)).astype(np.float32), rng.integers(0, 4, 64)
    q = tfq.quantize_model(model, scheme)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q.compile(keras.optimizers.Adam(1e-2), loss)
    steps = [v for v in q.trainable_variables if v.name == "step"]
    assert [v.shape for v in steps] == [(2, 32), (1, 4)]
    history = q.fit(data, labels, batch_size=16, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert all((v.numpy() != 1).all() for v in steps)
    expected = q.predict(data, verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), expected)
    packed = tfq.to_packed(q, tmp_path / "packed.keras")
    ours = packed.predict(data, verbose=0)
    again = keras.saving.load_model(tmp_path / "packed.keras")
    np.testing.assert_array_equal(again.predict(data, verbose=0), ours)
    tfq.to_packed(q, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    served = loaded.serve(data).numpy()
    np.testing.assert_allclose(served, ours, atol=1e-6)
    # An input of the second layer that lies between two integers may go to either.
    step = 0.0 if scheme == "w4_g32" else np.abs(expected).max() / 255
    np.testing.assert_allclose(ours, expected, atol=step + 1e-5)


def test_a_trained_model_is_packed_as_it_was_trained(network, images, rng):
    q = quantize(network, "w2a8", images)
    q.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    q.fit(images, rng.integers(0, 5, len(images)), epochs=1, verbose=0)
    packed = tfq.to_packed(q)
    np.testing.assert_array_equal(packed.predict(images, verbose=0), q.predict(images, verbose=0))


def test_the_quantized_model_stays_as_it_was(quantized, images):
    before = quantized.predict(images, verbose=0)
    packed = tfq.to_packed(quantized)
    for weight in packed.weights:
        weight.assign(np.zeros(weight.shape))
    np.testing.assert_array_equal(quantized.predict(images, verbose=0), before)


LAYERS = {
    "1d": lambda: layers.Conv1D(6, 3, strides=2, padding="same"),
    "1d causal": lambda: layers.Conv1D(6, 3, dilation_rate=2, padding="causal"),
    "1d valid": lambda: layers.Conv1D(6, 5),
    "1d grouped": lambda: layers.Conv1D(6, 3, groups=2),
    "1d transposed": lambda: layers.Conv1DTranspose(6, 3, strides=2),
    "1d depthwise": lambda: layers.DepthwiseConv1D(3, depth_multiplier=2),
    "1d separable": lambda: layers.SeparableConv1D(6, 3),
    "einsum": lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="de"),
    "lstm": lambda: layers.LSTM(6),
    "attention": lambda: lambda x: layers.MultiHeadAttention(2, 4)(x, x),
}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_packed_or_not_computes_what_its_wrapper_does(rng, name, scheme):
    shape = (3, 4) if name == "lstm" else (12, 4)  # Each step is a layer.
    inputs = keras.Input(shape)
    model = keras.Model(inputs, LAYERS[name]()(inputs))
    x = rng.normal(size=(32, *shape)).astype(np.float32)
    q = quantize(model, scheme, x)
    packed = tfq.to_packed(q)
    y, expected = packed.predict(x, verbose=0), q.predict(x, verbose=0)
    if tfq.SCHEMES[scheme].static:
        np.testing.assert_array_equal(y, expected)
    else:
        np.testing.assert_allclose(y, expected, atol=1e-5)  # Float sums in another order.
    stays = name in ("1d grouped", "1d transposed", "1d depthwise")
    assert bool(packed.packing_report.float_layers) == (stays or name == "1d separable")


def test_an_embedding_becomes_rows_of_bytes(rng):
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(50, 16, mask_zero=True, name="table")(tokens)
    model = keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    rows = rng.integers(0, 50, (40, 6))
    q = quantize(model, "w8a8", rows)
    packed = tfq.to_packed(q)
    np.testing.assert_array_equal(packed.predict(rows, verbose=0), q.predict(rows, verbose=0))
    (table,) = inner_layers(packed, PackedEmbedding)
    assert table.packed.shape == (50, 16)
    report = {layer.name: layer for layer in packed.packing_report.layers}["table"]
    assert (report.weight_bits, report.float_bytes, report.packed_bytes) == (8, 3200, 804)


@pytest.mark.parametrize("scheme", ["w8", "w4_g32", "w8a8_dynamic"])
def test_an_embedding_of_real_values_has_bytes_with_a_scale_for_each_column(rng, scheme):
    tokens = keras.Input((6,), dtype="int32")
    table = layers.Embedding(50, 16, mask_zero=True, name="table")
    model = keras.Model(tokens, [table(tokens), layers.GlobalAveragePooling1D()(table(tokens))])
    rows = rng.integers(0, 50, (40, 6))
    q = tfq.quantize_model(model, scheme)
    packed = tfq.to_packed(q)
    (layer,) = inner_layers(packed, PackedEmbedding)
    w = table.embeddings.numpy()
    scale = np.abs(w).max(axis=0) / np.float32(127)
    np.testing.assert_allclose(layer.scale.numpy(), scale[None], rtol=1e-6)
    expected = np.rint(w / layer.scale.numpy()) * layer.scale.numpy()
    values, means = packed.predict(rows, verbose=0)
    np.testing.assert_array_equal(values, expected[rows])
    np.testing.assert_array_equal(means, q.predict(rows, verbose=0)[1])  # Of what is no mask.
    assert "per channel (16)" in [layer.granularity for layer in tfq.summarize(packed).layers]
    (report,) = packed.packing_report.layers
    assert (report.weight_bits, report.packed_bytes, report.reason) == (8, 50 * 16 + 4 * 16, "")


def test_a_layer_that_is_called_twice_is_packed_once(rng):
    shared = layers.Dense(8, name="shared")
    inputs = [keras.Input((6,)), keras.Input((6,))]
    outputs = [shared(inputs[0]), layers.ReLU()(shared(inputs[1]))]
    model = keras.Model(inputs, layers.Concatenate()(outputs))
    # Inputs of other ranges: other grids, other integer biases, the same weights.
    x = [rng.normal(size=(32, 6)), 1 + 5 * rng.random((32, 6))]
    q = quantize(model, "w8a8", tuple(a.astype(np.float32) for a in x))
    packed = tfq.to_packed(q)
    np.testing.assert_array_equal(packed.predict(x, verbose=0), q.predict(x, verbose=0))
    (kernel,) = [layer for layer in packed.layers if isinstance(layer, IntegerKernel)]
    assert len(kernel.sites) == 2 and kernel.sites[0].input_zero_point != 0


def test_float_layers_and_custom_configs_come_along(network, images):
    q = tfq.quantize_model(network, "w8a8", skip=["hidden"])
    tfq.calibrate(q, images, progress=False)
    packed = tfq.to_packed(q)
    # The float layer's sums depend on how TensorFlow blocks the batch: it is the same for both.
    np.testing.assert_array_equal(packed.predict(images, verbose=0), q.predict(images, verbose=0))
    reasons = {layer.name: layer.reason for layer in packed.packing_report.float_layers}
    assert reasons["hidden"] == "it is not quantized"
    assert reasons["depthwise"] == "no packed kernel for this type of layer"


def test_the_report_adds_up(quantized):
    packed = tfq.to_packed(quantized)
    report = packed.packing_report
    assert [(r.name, r.weight_bits, r.activation_bits) for r in report.layers] == [
        ("conv", 4, 8),
        ("depthwise", None, 8),
        ("conv1x1", 4, 8),
        ("hidden", 4, 8),
        ("head", 4, 8),
    ]
    kernels = [layer for layer in packed.layers if isinstance(layer, IntegerKernel)]
    assert report.packed_bytes == sum(num_bytes(layer) for layer in kernels)
    folded = 3 * 3 * 3 * 8 + 8 + 9 * 8 + 8 + 8 * 8 + 8 + 32 * 24 + 24 + 24 * 5 + 5
    assert report.float_bytes == 4 * folded
    text = str(report)
    assert f"net: {report.packed_bytes:,} bytes of weights" in text
    assert "float: DepthwiseConv2D depthwise: no packed kernel" in text
    assert json.loads(report.to_json()) == report.to_dict()


def test_the_summary_knows_packed_layers(quantized):
    packed = tfq.to_packed(quantized)
    summary = tfq.summarize(packed)
    assert summary.state == "quantized"
    of = {layer.name: layer for layer in summary.layers}
    assert (of["hidden"].kind, of["hidden"].weight_bits) == ("PackedDense", 4)
    assert of["depthwise"].weight_bits == 32
    assert of["hidden"].num_bytes == num_bytes(packed.get_layer("hidden"))


def num_bytes(layer):
    return sum(int(np.prod(w.shape)) * np.dtype(w.dtype).itemsize for w in layer.weights)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4"])
def test_weights_on_disk_and_in_variables_shrink_with_their_bits(scheme, tmp_path):
    model = keras.Sequential([keras.Input((1024,)), layers.Dense(1024), layers.Dense(1024)])
    q = quantize(model, scheme, np.ones((4, 1024), np.float32))
    packed = tfq.to_packed(q, tmp_path / "packed.keras")
    model.save(tmp_path / "float.keras")
    share = tfq.SCHEMES[scheme].weight_bits / 32
    # Beside the integers: four vectors of floats to a layer of 1024, and the file's own 60 kB.
    assert sum(num_bytes(layer) for layer in packed.layers) < (share + 0.01) * num_bytes(model)
    size = (tmp_path / "packed.keras").stat().st_size
    assert size < (share + 0.01) * (tmp_path / "float.keras").stat().st_size + 60_000
    tfq.to_packed(q, tmp_path / "saved")
    size = sum(file.stat().st_size for file in (tmp_path / "saved").rglob("*"))
    assert size < (share + 0.01) * num_bytes(model) + 200_000


FRESH = """
import sys
import numpy as np
import tfquant
import keras, tensorflow as tf
keras_file, x_file, y_file, *saved_models = sys.argv[1:]
x = np.load(x_file)
model = keras.saving.load_model(keras_file)
answers = {"predict": model.predict(x, verbose=0)}
answers["function"] = tf.function(model, jit_compile=False)(x).numpy()
for path in saved_models:
    loaded = tf.saved_model.load(path)
    answers["serve"] = loaded.serve(x).numpy()
    (answers["signature"],) = (
        y.numpy() for y in loaded.signatures["serving_default"](tf.constant(x)).values()
    )
np.savez(y_file, **answers)
"""


def run_fresh(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_both_files_load_in_a_fresh_process_with_one_import(quantized, images, tmp_path):
    files = [tmp_path / name for name in ("m.keras", "x.npy", "y.npz", "saved")]
    packed = tfq.to_packed(quantized, files[0])
    tfq.to_packed(quantized, files[-1])
    np.save(files[1], images)
    run_fresh(FRESH, *files)
    expected, answers = packed.predict(images, verbose=0), np.load(files[2])
    assert sorted(answers) == ["function", "predict", "serve", "signature"]
    for name in answers:
        np.testing.assert_array_equal(answers[name], expected, err_msg=name)


def test_a_saved_model_takes_several_inputs_and_returns_several_outputs(rng, tmp_path):
    inputs = {"left-a": keras.Input((6,), name="left-a"), "b": keras.Input((4,), name="b")}
    y = layers.Concatenate()(list(inputs.values()))
    model = keras.Model(inputs, {"sum": layers.Dense(3)(y), "all": layers.Dense(2)(y)})
    x = {name: rng.normal(size=(8, i.shape[1])).astype(np.float32) for name, i in inputs.items()}
    packed = tfq.to_packed(quantize(model, "w8a8", x), tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    answers = loaded.serve(*(x[i.name] for i in packed.inputs))
    expected = packed.predict(x, verbose=0)
    assert sorted(answers) == ["all", "sum"]
    for name in answers:
        np.testing.assert_array_equal(answers[name], expected[name])


def test_without_the_compiled_ops_the_answers_are_the_same(quantized, images, tmp_path):
    files = [tmp_path / name for name in ("m.keras", "x.npy", "y.npz")]
    packed = tfq.to_packed(quantized, files[0])
    np.save(files[1], images)
    alone = {"TFQUANT_BUILD": "0", "TFQUANT_CACHE_DIR": str(tmp_path / "none")}
    done = run_fresh(FRESH, *files, TFQUANT_PACKAGED="0", **alone)
    assert done.stderr.count("runs its low-bit ops on the slow reference") == 1
    answers = np.load(files[2])
    for name in answers:
        np.testing.assert_array_equal(answers[name], packed.predict(images, verbose=0))


RESIDENT = """
import ctypes, os, sys
import tfquant
import keras, tensorflow as tf

def run(model):
    x = tf.zeros((1, *model.inputs[0].shape[1:]))
    tf.function(lambda x: model(x, training=False))(x).numpy()

def resident():
    ctypes.CDLL(None).malloc_trim(0)  # What loading freed is not the model's.
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

run(keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)]))
before = resident()
model = keras.saving.load_model(sys.argv[1], compile=False)
run(model)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and glibc")
def test_the_resident_set_of_a_fresh_process_falls_to_a_fifth(tmp_path):
    size = 2048
    model = keras.Sequential([keras.Input((size,)), *(layers.Dense(size) for _ in range(4))])
    model.save(tmp_path / "float.keras")
    q = quantize(model, "w4a8", np.ones((4, size), np.float32))
    tfq.to_packed(q, tmp_path / "packed.keras")
    packed, real = (
        int(run_fresh(RESIDENT, tmp_path / f"{name}.keras").stdout.splitlines()[-1])
        for name in ("packed", "float")
    )
    assert real > 4 * 4 * size * size  # Four layers of float32.
    assert packed < 0.2 * real


class TestStore:
    """Integers into the narrowest width."""

    def test_a_channel_that_a_negative_gain_negated_is_stored_negated(self):
        q = np.array([[2, -2], [1, 1], [0, 0]])
        stored, width, sign = store(q, 2)
        assert width == 2
        np.testing.assert_array_equal(stored * sign, q)
        stored, width, sign = store(q, 2, negate=False)
        assert (width, sign) == (4, None)
        np.testing.assert_array_equal(stored, q)

    @pytest.mark.parametrize(("num_bits", "width"), [(1, 2), (2, 2), (3, 4), (5, 8), (8, 8)])
    def test_odd_widths_take_the_next_one(self, num_bits, width):
        half = 2 ** (num_bits - 1)
        q = np.array([[-half, half - 1]]).T
        stored, found, sign = store(q, num_bits)
        assert (found, sign) == (width, None)
        np.testing.assert_array_equal(stored, q)

    def test_what_has_no_packed_kernel_is_told_apart(self):
        made = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu")]).layers[-1]
        assert why_not(made) == "its activation is part of it"
        made = layers.Dense(2)
        made.build((None, 140_000))
        assert "more than 131071 weights" in why_not(made)


class TestMistakes:
    """Clear errors, and nothing half-written."""

    def test_a_float_model_is_refused(self, network, tmp_path):
        with pytest.raises(ValueError, match=r"A model from tfq\.quantize_model is"):
            tfq.to_packed(network, tmp_path / "m.keras")
        assert not list(tmp_path.iterdir())

    def test_no_model_is_refused(self):
        with pytest.raises(TypeError, match="A Keras 3 model is expected"):
            tfq.to_packed("model.keras")

    def test_a_model_that_was_not_calibrated_is_refused(self, network):
        with pytest.raises(ValueError, match=r"call tfq\.calibrate"):
            tfq.to_packed(tfq.quantize_model(network, "w8a8"))

    def test_a_packed_model_is_refused(self, quantized):
        with pytest.raises(ValueError, match="packed already"):
            tfq.to_packed(tfq.to_packed(quantized))

    def test_weights_that_are_not_finite_are_refused(self, quantized):
        quantized.get_layer("quant_head").layer.bias.assign(np.full(5, np.nan))
        with pytest.raises(ValueError, match="Weights must be finite"):
            tfq.to_packed(quantized)

    def test_a_path_that_cannot_be_written_is_named_before_the_work(self, quantized, tmp_path):
        (tmp_path / "folder.keras").mkdir()
        (tmp_path / "taken").mkdir()
        for name, error, words in (
            ("folder.keras", IsADirectoryError, "which is a folder"),
            ("taken", FileExistsError, "which exists"),
            ("taken/", FileExistsError, "which exists"),
            ("no/m.keras", FileNotFoundError, "does not exist"),
            ("no/saved", FileNotFoundError, "does not exist"),
            ("m.tflite", ValueError, r"must end in \.keras"),
        ):
            with pytest.raises(error, match=words):
                tfq.to_packed(quantized, f"{tmp_path}/{name}")
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder.keras", "taken"]

    @pytest.mark.parametrize("name", ["m.keras", "saved"])
    def test_a_file_that_fails_leaves_what_was_there(self, quantized, tmp_path, monkeypatch, name):
        def fail(*args, **kwargs):
            raise OSError("disk full")

        (tmp_path / "m.keras").write_text("old")
        monkeypatch.setattr(keras.Model, "save", fail)
        monkeypatch.setattr(tf.saved_model, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            tfq.to_packed(quantized, tmp_path / name)
        assert [p.name for p in tmp_path.iterdir()] == ["m.keras"]
        assert (tmp_path / "m.keras").read_text() == "old"
