"""ONNX files against ONNX Runtime: what they compute, what they consist of, what they refuse."""

import dataclasses
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from small import randomize

import tfquant as tfq

onnx = pytest.importorskip("onnx", reason="needs the extra tfquant[onnx]: onnx, onnxruntime")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra tfquant[onnx]: onnxruntime")

# A tie of an operator that fuses three, in so many values.
TIES = 1e-4

VECTOR, SEQUENCE, IMAGE = (12,), (6, 8), (9, 8, 4)


def written(tmp_path, model, rows, scheme="w8a8", device="onnxruntime", **settings):
    """A model quantized and written: the model, its report and its file."""
    q = tfq.quantize_model(model, scheme, device=device)
    tfq.calibrate(q, rows, progress=False)
    path = tmp_path / "model.onnx"
    report = tfq.to_onnx(q, path, samples=rows, progress=False, **settings)
    return q, report, path


def run(path, *rows):
    """What ONNX Runtime returns, with sums in 32 bits and real activations as they are."""
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = runtime.InferenceSession(str(path), options)
    names = [x.name for x in session.get_inputs()]
    return session.run(None, dict(zip(names, rows, strict=True)))


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def tensors(path):
    return {x.name: x for x in onnx.load(path).graph.initializer}


def assert_exact(report):
    """Raises unless the file computes the model's integers, op by op and end to end."""
    found = report.op_by_op
    assert found.differing <= TIES * found.values
    assert found.largest <= 1
    assert not report.end_to_end.differing


def image_network(rng):
    x = y = keras.Input(IMAGE)
    y = layers.Conv2D(8, 3, padding="same", strides=2, use_bias=False)(y)
    y = layers.BatchNormalization()(y)
    y = layers.ReLU(6)(y)
    z = layers.DepthwiseConv2D(3, padding="same", activation="relu")(y)
    y = layers.Add()([y, layers.Conv2D(8, 1)(z)])
    y = layers.ZeroPadding2D(((0, 1), (1, 0)))(y)
    y = layers.Conv2D(6, 3, dilation_rate=2, padding="same", activation="swish")(y)
    y = layers.Concatenate()([y, layers.MaxPooling2D(2, 1, "same")(y)])
    y = layers.GlobalAveragePooling2D()(y)
    return randomize(keras.Model(x, layers.Dense(5, activation="softmax")(y)), rng)


ROWS = {
    "dense": (lambda x: layers.Dense(5, activation="relu")(x), VECTOR),
    "dense_of_sequences": (lambda x: layers.Dense(5)(x), SEQUENCE),
    "conv1d_causal": (lambda x: layers.Conv1D(5, 3, padding="causal")(x), SEQUENCE),
    "conv1d_of_one_filter": (lambda x: layers.Conv1D(1, 2, dilation_rate=2)(x), SEQUENCE),
    "depthwise_1d": (lambda x: layers.DepthwiseConv1D(3, depth_multiplier=2)(x), SEQUENCE),
    "conv2d_valid": (lambda x: layers.Conv2D(5, (3, 2), strides=(2, 1))(x), IMAGE),
    "conv2d_of_groups": (lambda x: layers.Conv2D(6, 3, groups=2, padding="same")(x), IMAGE),
    "conv2d_same_strided": (lambda x: layers.Conv2D(5, 4, strides=3, padding="same")(x), IMAGE),
    "depthwise_of_two": (lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x), IMAGE),
    "separable": (lambda x: layers.SeparableConv2D(5, 3, padding="same")(x), IMAGE),
    "transposed": (lambda x: layers.Conv2DTranspose(5, 3, strides=2, padding="same")(x), IMAGE),
    "transposed_valid": (lambda x: layers.Conv2DTranspose(5, 2, strides=3)(x), IMAGE),
    "add": (lambda x: layers.Add()([x, layers.Dense(4)(x)]), IMAGE),
    "subtract": (lambda x: layers.Subtract()([x, layers.Conv2D(4, 1)(x)]), IMAGE),
    "multiply": (lambda x: layers.Multiply()([x, layers.Conv2D(4, 1)(x)]), IMAGE),
    "maximum": (lambda x: layers.Maximum()([x, layers.Conv2D(4, 1)(x)]), IMAGE),
    "concatenate": (lambda x: layers.Concatenate(1)([x, layers.Conv2D(4, 1)(x)]), IMAGE),
    "average": (lambda x: layers.AveragePooling2D((2, 4))(layers.Conv2D(4, 1)(x)), IMAGE),
    "average_same": (lambda x: layers.AveragePooling2D(3, 2, "same")(x), IMAGE),
    "average_of_all": (lambda x: layers.AveragePooling2D(IMAGE[:2])(x), IMAGE),
    "average_1d": (lambda x: layers.AveragePooling1D(2)(x), SEQUENCE),
    "max": (lambda x: layers.MaxPooling2D(3, 2, "same")(layers.Conv2D(4, 1)(x)), IMAGE),
    "global_max": (lambda x: layers.GlobalMaxPooling2D()(x), IMAGE),
    "global_average_1d": (lambda x: layers.GlobalAveragePooling1D(keepdims=True)(x), SEQUENCE),
    "crop": (lambda x: layers.Cropping2D(((1, 0), (2, 1)))(layers.Conv2D(4, 1)(x)), IMAGE),
    "pad_1d": (lambda x: layers.ZeroPadding1D((1, 2))(x), SEQUENCE),
    "pad_reflect": (
        lambda x: layers.Dense(4)(ops.pad(x, ((0, 0), (1, 2), (0, 0)), "reflect")),
        SEQUENCE,
    ),
    "pad_zeros": (lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (1, 0))), IMAGE),
    "flatten": (lambda x: layers.Dense(5)(layers.Flatten()(layers.Conv2D(3, 3)(x))), IMAGE),
    "permute": (lambda x: layers.Permute((3, 1, 2))(layers.Conv2D(3, 3)(x)), IMAGE),
    "reshape": (lambda x: layers.Reshape((4, -1))(x), IMAGE),
    "repeat": (lambda x: layers.RepeatVector(3)(x), VECTOR),
    "up_1d": (lambda x: layers.UpSampling1D(2)(x), SEQUENCE),
    "up_nearest": (lambda x: layers.UpSampling2D((2, 3))(x), IMAGE),
    "up_bilinear": (lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x), IMAGE),
    "leaky": (lambda x: layers.LeakyReLU(0.3)(x), IMAGE),
    "prelu": (lambda x: layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(4, 1)(x)), IMAGE),
    "elu": (lambda x: layers.ELU()(x), IMAGE),
    "gelu": (lambda x: layers.Activation("gelu")(x), IMAGE),
    "sigmoid": (lambda x: layers.Activation("sigmoid")(x), IMAGE),
    "tanh": (lambda x: layers.Activation("tanh")(x), SEQUENCE),
    "swish": (lambda x: layers.Activation("swish")(layers.Conv2D(4, 1)(x)), IMAGE),
    "hard_swish": (lambda x: layers.Activation("hard_swish")(x), IMAGE),
    "softmax_over_rows": (lambda x: layers.Softmax(1)(layers.Conv2D(4, 1)(x)), IMAGE),
    "batch_norm_alone": (lambda x: layers.BatchNormalization()(x), IMAGE),
    "layer_norm": (lambda x: layers.LayerNormalization()(layers.Dense(6)(x)), SEQUENCE),
    "slices": (lambda x: x[:, 1:-1, ::2] + 0.5, IMAGE),
    "one_of": (lambda x: x[:, 2], SEQUENCE),
    "sum": (lambda x: ops.sum(layers.Conv2D(4, 1)(x), axis=(1, 2)), IMAGE),
    "attention": (lambda x: layers.MultiHeadAttention(2, 4)(x, x), SEQUENCE),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_layer_computes_the_model_s_integers(row, rng, tmp_path):
    call, shape = ROWS[row]
    x = keras.Input(shape)
    model = randomize(keras.Model(x, call(x)), rng)
    rows = rng.normal(size=(32, *shape)).astype("float32")
    _, report, path = written(tmp_path, model, rows)
    found = report.op_by_op
    assert found.largest <= 1
    assert found.differing <= max(1, TIES * found.values)
    # Another run, of one row, by a session of the test's own.
    (alone,), (all_of_them,) = run(path, rows[:1]), run(path, rows)
    np.testing.assert_array_equal(alone, all_of_them[:1])
    expected = model.predict(rows, verbose=0)
    assert np.abs(all_of_them - expected).max() < 0.15 * np.abs(expected).max() + 0.05


def test_a_network_of_images_runs_in_integers_and_is_exact(rng, tmp_path):
    rows = rng.normal(size=(64, *IMAGE)).astype("float32")
    q, report, path = written(tmp_path, image_network(rng), rows)
    assert_exact(report)
    counts = report.integer_operators
    assert counts["QLinearConv"] == 4
    assert counts["QGemm"] == counts["QLinearAdd"] == counts["QLinearGlobalAveragePool"] == 1
    assert not [x for x in report.float_operators if x.operator in ("Conv", "FusedConv", "Gemm")]
    np.testing.assert_array_equal(run(path, rows)[0], q.predict(rows, verbose=0))


@pytest.mark.parametrize("bounds", [(0.0, 0.5), (-0.3, 0.4), (-9.0, 9.0)])
def test_a_grid_behind_a_grid_is_not_made_one_with_it(bounds, rng, tmp_path):
    x = keras.Input(VECTOR)
    y = ops.clip(layers.Dense(12)(x), *bounds)
    model = randomize(keras.Model(x, layers.Dense(5)(y)), rng)
    rows = rng.normal(size=(64, *VECTOR)).astype("float32")
    q, report, path = written(tmp_path, model, rows)
    assert_exact(report)
    np.testing.assert_array_equal(run(path, rows)[0], q.predict(rows, verbose=0))


@pytest.mark.parametrize("kind", [lambda: layers.Dense(12), layers.BatchNormalization])
def test_a_kernel_that_two_calls_share_is_loaded(kind, rng, tmp_path):
    x, layer = keras.Input(VECTOR), kind()
    model = randomize(keras.Model(x, layer(ops.tanh(layer(x)))), rng)
    rows = rng.normal(size=(32, *VECTOR)).astype("float32")
    q, report, path = written(tmp_path, model, rows)
    assert_exact(report)
    np.testing.assert_array_equal(run(path, rows)[0], q.predict(rows, verbose=0))


def test_what_keras_computes_is_what_onnx_runtime_does_for_any_batch(rng, tmp_path):
    rows = rng.normal(size=(32, *IMAGE)).astype("float32")
    q, _, path = written(tmp_path, image_network(rng), rows)
    for count in (1, 2, 31):
        expected = q.predict(rows[:count], verbose=0)
        np.testing.assert_array_equal(run(path, rows[:count])[0], expected)


def test_the_checker_finds_nothing_and_the_batch_is_free(rng, tmp_path):
    rows = rng.normal(size=(8, *IMAGE)).astype("float32")
    _, _, path = written(tmp_path, image_network(rng), rows)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (x,), (y,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["batch", *IMAGE]
    assert y.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_no_relu_stands_where_the_grid_clips(rng, tmp_path):
    rows = rng.normal(size=(16, *IMAGE)).astype("float32")
    _, _, path = written(tmp_path, image_network(rng), rows)
    assert "Relu" not in operators(path)


def test_a_clamp_within_the_grid_is_one_of_integers(rng, tmp_path):
    """A ReLU whose output shares its grid with a branch below 0: its zero point is not the end."""
    x = keras.Input(IMAGE)
    branches = [layers.Conv2D(4, 1, activation="relu")(x), layers.Conv2D(4, 1)(x)]
    y = layers.Concatenate()(branches)
    model = randomize(keras.Model(x, layers.Conv2D(3, 1)(y)), rng)
    rows = rng.normal(size=(32, *IMAGE)).astype("float32")
    _, report, path = written(tmp_path, model, rows)
    assert_exact(report)
    assert "Clip" in operators(path) and "Relu" not in operators(path)
    assert report.integer_operators["QLinearConv"] == 3


def test_few_transpositions_stand_between_channels_first_and_last(rng, tmp_path):
    rows = rng.normal(size=(8, *IMAGE)).astype("float32")
    _, _, path = written(tmp_path, image_network(rng), rows)
    assert operators(path).count("Transpose") == 1  # Of the input.


def test_a_file_is_no_larger_than_one_for_litert(rng, tmp_path):
    rows = rng.normal(size=(8, *IMAGE)).astype("float32")
    q, report, path = written(tmp_path, image_network(rng), rows)
    settings = {"batch_size": None, "verify": False, "progress": False}
    other = tfq.to_tflite(q, tmp_path / "model.tflite", **settings)
    assert path.stat().st_size == report.quantized_bytes <= 1.05 * other.quantized_bytes


def dense_network(rng, units=32, inputs=64):
    x = keras.Input((inputs,))
    y = layers.Dense(units, activation="relu")(x)
    return randomize(keras.Model(x, layers.Dense(units)(y)), rng)


@pytest.mark.parametrize("scheme", ["w4", "w4_g32", "w8"])
def test_float_activations_meet_weights_as_they_are_stored(scheme, rng, tmp_path):
    rows = rng.normal(size=(16, 64)).astype("float32")
    q, report, path = written(tmp_path, dense_network(rng), rows, scheme)
    assert report.integer_operators == {"MatMulNBits": 2}
    np.testing.assert_allclose(run(path, rows)[0], q.predict(rows, verbose=0), rtol=1e-4, atol=1e-4)
    kernel = tensors(path)[f"{report.layers[0].name}/kernel"]
    expected = onnx.TensorProto.INT8 if scheme == "w8" else onnx.TensorProto.INT4
    assert kernel.data_type == expected
    given = report.layers[0].weight_bits
    assert given == (8 if scheme == "w8" else 4)


def test_given_integers_arrive_bit_for_bit(rng, tmp_path):
    model = dense_network(rng)
    rows = rng.normal(size=(16, 64)).astype("float32")
    q = tfq.quantize_model(model, "w4a8", device="onnxruntime")
    wrapper = next(x for x in q.layers if getattr(x, "weight_quantizers", None))
    integers = rng.integers(-7, 8, (64, 32))
    wrapper.give_integers(integers, np.full(32, 0.02, "float32"))
    tfq.calibrate(q, rows, progress=False)
    tfq.to_onnx(q, tmp_path / "given.onnx", progress=False)
    stored = tensors(tmp_path / "given.onnx")[f"{wrapper.layer.name}/kernel"]
    found = onnx.numpy_helper.to_array(stored).astype(int)
    np.testing.assert_array_equal(found, integers)


def test_four_bits_with_integer_activations_are_said_to_compute_in_float(rng, tmp_path):
    rows = rng.normal(size=(16, 64)).astype("float32")
    _, report, _ = written(tmp_path, dense_network(rng), rows, "w4a8")
    assert not report.integer_operators
    assert {x.operator for x in report.float_operators} <= {"Gemm", "FusedGemm", "MatMul"}
    assert "no product of 4-bit weights" in report.float_operators[0].reason
    assert any("4-bit weights with 8-bit activations in float" in x for x in report.remarks)
    assert "4-bit weights with 8-bit activations in float" in str(report)


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8_dynamic", "f16"])
def test_other_schemes_are_written_and_what_is_float_is_named(scheme, rng, tmp_path):
    rows = rng.normal(size=(16, *IMAGE)).astype("float32")
    q, report, path = written(tmp_path, image_network(rng), rows, scheme)
    assert report.float_operators
    np.testing.assert_allclose(run(path, rows)[0], q.predict(rows, verbose=0), atol=0.05)


def test_another_device_predicts_the_same_and_the_report_says_what_differs(rng, tmp_path):
    rows = rng.normal(size=(64, *IMAGE)).astype("float32")
    _, report, _ = written(tmp_path, image_network(rng), rows, device="litert")
    assert report.end_to_end.equal_predictions >= 0.98
    assert "INT8 ADD" in report.elsewhere["onnxruntime"]
    assert "the model simulates litert" in str(report)


def test_saturated_sums_are_named_where_the_processor_has_them(rng, tmp_path):
    """Of weights and activations at full scale the sum of two products leaves 16 bits."""
    x = keras.Input((64,))
    model = keras.Model(x, layers.Dense(8, use_bias=False)(x))
    model.layers[-1].set_weights([np.ones((64, 8), "float32")])
    rows = np.concatenate([rng.uniform(0.5, 1, (15, 64)), np.ones((1, 64))]).astype("float32")
    _, report, path = written(tmp_path, model, rows)
    assert_exact(report)
    plain = runtime.InferenceSession(str(path))
    saturates = (plain.run(None, {plain.get_inputs()[0].name: rows})[0] != run(path, rows)[0]).any()
    assert saturates == any("session.x64quantprecision" in x for x in report.remarks)


class Spin(layers.Layer):
    def call(self, x):
        return ops.roll(ops.sin(x), 1, axis=-1)


def test_unknown_layers_are_all_named_and_nothing_is_written(rng, tmp_path):
    x = keras.Input(VECTOR)
    model = keras.Model(x, Spin(name="again")(layers.Dense(4)(Spin(name="spin")(x))))
    with pytest.raises(
        ValueError, match=r"nothing was written.*'sin' \(Sin\), 'roll' \(Roll\), 'sin_1'"
    ):
        written(tmp_path, model, rng.normal(size=(8, 12)).astype("float32"))
    assert not list(tmp_path.iterdir())


def test_a_layer_of_a_known_name_is_not_taken_for_it(rng, tmp_path):
    class Dense(layers.Layer):
        def call(self, x):
            return tf.sin(x)  # What Keras cannot see into.

    x = keras.Input(VECTOR)
    model = keras.Model(x, layers.Dense(4)(Dense(name="mine")(x)))
    with pytest.raises(ValueError, match=r"'mine' \(Dense\)"):
        written(tmp_path, model, rng.normal(size=(8, 12)).astype("float32"))


def test_a_missing_package_is_named_with_the_extra(rng, tmp_path, monkeypatch):
    q = tfq.quantize_model(dense_network(rng), "w8")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'tfquant\[onnx\]'"):
        tfq.to_onnx(q, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["missing/model.onnx", "."])
def test_a_path_that_cannot_be_written_is_refused_at_once(path, rng, tmp_path):
    q = tfq.quantize_model(dense_network(rng), "w8")
    with pytest.raises(OSError, match=r"Received|does not exist"):
        tfq.to_onnx(q, tmp_path / path, progress=False)


def test_a_model_that_is_not_calibrated_is_refused(rng, tmp_path):
    q = tfq.quantize_model(dense_network(rng), "w8a8")
    with pytest.raises(ValueError, match="calibrate"):
        tfq.to_onnx(q, tmp_path / "model.onnx", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_written(rng, tmp_path, monkeypatch):
    from tfquant.nodes import writer

    rows = rng.normal(size=(16, *IMAGE)).astype("float32")
    step = writer.Writer.step

    def wrong(self, s):
        return step(self, dataclasses.replace(s, scale=s.scale * np.float32(1.5)))

    monkeypatch.setattr(writer.Writer, "step", wrong)
    with pytest.raises(RuntimeError, match="must compute what the model computes"):
        written(tmp_path, image_network(rng), rows)
    assert not list(tmp_path.iterdir())


def test_the_report_is_plain_values(rng, tmp_path):
    rows = rng.normal(size=(16, 64)).astype("float32")
    _, report, _ = written(tmp_path, dense_network(rng), rows)
    assert '"QGemm": 2' in report.to_json()
    assert "ONNX Runtime runs in integers: 2 QGemm" in str(report)
