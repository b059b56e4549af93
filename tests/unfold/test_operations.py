"""Operations of keras.ops in a functional model: the integers of the layers they stand for."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq
from tfquant.litert.flatbuffer import File

SHAPE = (6, 6, 4)
IMAGE = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def conv(x):
    return layers.Conv2D(4, 3, padding="same")(x)


INTEGER = {
    "sum": lambda x: conv(x) + conv(x),
    "difference": lambda x: conv(x) - conv(x),
    "product": lambda x: conv(x) * conv(x),
    "twice": lambda x: (lambda y: y + y)(conv(x)),
    "plus a number": lambda x: conv(x) + 1.0,
    "a number minus": lambda x: 1.0 - conv(x),
    "times a number": lambda x: conv(x) * 2.0,
    "by a number": lambda x: conv(x) / 255.0,
    "plus a vector": lambda x: conv(x) + np.arange(4, dtype="float32"),
    "scaled input": lambda x: conv(x / 127.5 - 1.0),
    "relu": lambda x: ops.relu(conv(x)),
    "clip": lambda x: ops.clip(conv(x) * 3.0, 0, 6),
    "sigmoid": lambda x: ops.sigmoid(conv(x)),
    "softmax": lambda x: ops.softmax(conv(x)),
    "log softmax": lambda x: ops.log_softmax(conv(x)),
    "log softmax as activation": lambda x: layers.Dense(3, activation="log_softmax")(conv(x)),
    "log softmax of columns": lambda x: ops.log_softmax(conv(x), axis=1),
    "softmax of columns": lambda x: ops.softmax(conv(x), axis=1),
    "log softmax beside others": lambda x: ops.concatenate([ops.log_softmax(conv(x)), conv(x)], 1),
    "maximum": lambda x: ops.maximum(conv(x), conv(x)),
    "mean over space": lambda x: ops.mean(conv(x), axis=(1, 2)),
    "mean over channels": lambda x: ops.mean(conv(x), axis=-1),
    "max": lambda x: ops.max(conv(x), axis=(1, 2), keepdims=True),
    "sum over space": lambda x: ops.sum(conv(x), axis=(1, 2)),
    "product over channels": lambda x: ops.prod(conv(x), axis=-1),
    "slice": lambda x: conv(x)[:, 1:5, ::2, :],
    "concatenate": lambda x: ops.concatenate([conv(x), conv(x)], axis=-1),
    "split": lambda x: ops.concatenate(ops.split(conv(x), 2, axis=-1)[::-1], axis=-1),
    "stack": lambda x: ops.stack([conv(x), conv(x)], axis=1),
    "transpose": lambda x: ops.transpose(conv(x), (0, 2, 1, 3)),
    "reshape": lambda x: ops.reshape(conv(x), (-1, 36, 4)),
    "squeeze": lambda x: ops.squeeze(ops.expand_dims(conv(x), 1), 1),
    "pad": lambda x: ops.pad(conv(x), [[0, 0], [1, 1], [0, 2], [0, 0]]),
    "flip": lambda x: ops.flip(conv(x), 1),
    "resize": lambda x: ops.image.resize(conv(x), (11, 9)),
    "resize to the nearest": lambda x: ops.image.resize(conv(x), (12, 7), interpolation="nearest"),
    "repeat": lambda x: ops.repeat(conv(x), 2, axis=1),
    "plus an image": lambda x: conv(x) + IMAGE,
    "an image minus": lambda x: ops.subtract(IMAGE, conv(x)),
    "times an image": lambda x: conv(x) * IMAGE,
    "maximum with a number": lambda x: ops.maximum(conv(x), 0.1),
    "negative": lambda x: -conv(x),
    "moveaxis": lambda x: ops.moveaxis(conv(x), -1, 1),
    "cast to its own type": lambda x: ops.cast(conv(x), "float32"),
    "einsum of two tensors": lambda x: ops.einsum("bijc,bjkc->bikc", conv(x), conv(x)),
    "exp": lambda x: ops.exp(conv(x)),
    "abs": lambda x: ops.abs(conv(x)),
    "inverse root": lambda x: ops.rsqrt(ops.relu(conv(x)) + 0.5),
    "logarithm": lambda x: ops.log(ops.relu(conv(x)) + 1.0),
    "square": lambda x: ops.square(conv(x)),
    "cube": lambda x: ops.power(conv(x), 3),
    "where": lambda x: ops.where(ops.roll(x, 1) == x, conv(x), conv(x)),
    "where a number": lambda x: ops.where(ops.roll(x, 1) == x, conv(x), 0.1),
    "matmul with weights": lambda x: ops.matmul(conv(x), WEIGHTS),
    "einsum with weights": lambda x: ops.einsum("bhwc,cd->bhwd", conv(x), WEIGHTS),
}

# One step now and then.
INEXACT = (
    "einsum of two tensors",
    "inverse root",
    "log softmax",
    "log softmax as activation",
    "log softmax beside others",
    "log softmax of columns",
    "sigmoid",
    "softmax",
    "softmax of columns",
    "sum over space",
)

# These run in float, between integer layers, and are named.
FLOAT = {
    "sine": lambda x: conv(ops.sin(conv(x))),
    "root": lambda x: conv(ops.sqrt(ops.relu(conv(x)) + 0.5)),
    "comparison across grids": lambda x: conv(ops.where(conv(x) > conv(x), conv(x), conv(x))),
    "comparison in small steps": lambda x: conv(ops.where(0.01 * conv(x) > 0, conv(x), conv(x))),
    "comparison in large steps": lambda x: conv(ops.where(1e4 * conv(x) > 0, conv(x), conv(x))),
    "comparison beyond all": lambda x: conv(ops.where(conv(x) > -1e9, conv(x), conv(x))),
    "equal to what never is": lambda x: conv(ops.where(ops.equal(x, 0.1), conv(x), conv(x))),
    "quotient": lambda x: conv(conv(x) / (ops.relu(conv(x)) + 0.5)),
    "power": lambda x: conv(ops.power(ops.relu(conv(x)), 2.5)),
    "unit columns": lambda x: conv(ops.normalize(conv(x), axis=1)),
    "sums of one": lambda x: conv(ops.normalize(conv(x), order=1)),
}


def converted(make, rng, path, tolerance=0.04):
    x = keras.Input(SHAPE)
    model = keras.Model(x, make(x))
    data = rng.normal(size=(32, *SHAPE)).astype(np.float32)
    q = tfq.quantize_model(model)
    tfq.calibrate(q, data, observer="min_max", progress=False)
    expected = np.asarray(model(data))
    np.testing.assert_allclose(q(data), expected, atol=tolerance * np.abs(expected).max())
    return q, data, tfq.to_tflite(q, path / "model.tflite", progress=False)


@pytest.mark.parametrize("name", INTEGER)
def test_an_operation_runs_in_integers(name, rng, tmp_path):
    q, data, report = converted(INTEGER[name], rng, tmp_path)
    assert not report.float_operators
    tolerated = 0.01 if name in INEXACT else 0
    assert report.end_to_end.differing <= tolerated * report.end_to_end.values
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(again(data), q(data))


@pytest.mark.parametrize("name", FLOAT)
def test_an_operation_without_a_kernel_runs_in_float_and_is_named(name, rng, tmp_path):
    # A comparison beside a tie takes the other branch.
    _, _, report = converted(FLOAT[name], rng, tmp_path, 9 if "compar" in name else 0.04)
    assert report.float_operators
    assert report.end_to_end.largest <= 1
    assert sum(layer.operator == "CONV_2D" for layer in report.layers) >= 2


ORDERS = ("greater", "greater_equal", "less", "less_equal")


@pytest.mark.parametrize("constant", ["first", "second", "none"])
@pytest.mark.parametrize("name", [*ORDERS, "equal", "not_equal"])
def test_comparisons_of_one_grid_are_those_of_integers(name, constant, rng, tmp_path):
    size = 200
    data = rng.uniform(-2, 3, (64, size)).astype(np.float32)
    data[:, ::3] = 0.0
    bounds = rng.uniform(-1.9, 2.9, size).astype(np.float32) if name in ORDERS else np.float32(0)

    def make(x):
        pair = {"first": (bounds, x), "second": (x, bounds), "none": (x, ops.flip(x, -1))}
        return ops.where(getattr(ops, name)(*pair[constant]), x, -1.0)

    x = keras.Input((size,))
    q = tfq.quantize_model(keras.Model(x, make(x)))
    tfq.calibrate(q, data, observer="min_max", progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert not report.float_operators
    assert report.end_to_end.differing == 0
    file = File((tmp_path / "model.tflite").read_bytes())
    (compared,) = [op for op in file.ops if op.name == name.upper()]
    assert [file.type(i) for i in compared.inputs] == ["INT8", "INT8"]


@pytest.mark.parametrize("function", [ops.log_softmax, ops.normalize], ids=["log", "unit"])
@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_functions_of_vectors_are_those_of_the_device(function, size, scale, rng, tmp_path):
    x = keras.Input((25, size))
    data = (rng.normal(size=(64, 25, size)) * scale).astype(np.float32)
    data[:, 0] = 0.0
    q = tfq.quantize_model(keras.Model(x, function(x)))
    tfq.calibrate(q, data, observer="min_max", progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    layer = report.layers[-1]
    operator = "LOG_SOFTMAX" if function is ops.log_softmax else "L2_NORMALIZATION"
    assert (layer.operator, layer.arithmetic) == (operator, "exact")
    assert report.op_by_op.differing == 0 == report.end_to_end.differing


@pytest.mark.parametrize("axis", [1, -1, (1, 2), (1, 3), (3, 1), (1, 2, 3)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_a_product_along_axes_is_that_of_the_device(axis, keepdims, rng, tmp_path):
    x = keras.Input((3, 2, 4))
    model = keras.Model(x, ops.prod(x, axis=axis, keepdims=keepdims))
    data = (rng.uniform(0.6, 1.4, (256, 3, 2, 4)) * rng.choice([-1, 1], (256, 3, 2, 4))).astype("f")
    q = tfq.calibrate(tfq.quantize_model(model), data, observer="min_max", progress=False)
    expected = np.asarray(model(data))
    np.testing.assert_allclose(q(data), expected, atol=0.1 * np.abs(expected).max())
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert not report.float_operators
    assert (report.layers[-1].operator, report.end_to_end.differing) == ("REDUCE_PROD", 0)


def test_a_product_of_16_bits_is_float(rng, tmp_path):
    x = keras.Input((6,))
    y = ops.prod(layers.Reshape((4, 2))(layers.Dense(8)(x)), axis=-1)
    data = rng.normal(size=(32, 6)).astype(np.float32)
    q = tfq.quantize_model(keras.Model(x, layers.Dense(4)(y)), "w8a16")
    tfq.calibrate(q, data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert [op.operator for op in report.float_operators] == ["REDUCE_PROD"]
    assert report.end_to_end.largest <= 3  # 16-bit steps, through two layers.


def test_a_log_softmax_ends_where_the_grid_of_the_device_ends(rng):
    x = keras.Input((3,))
    q = tfq.quantize_model(keras.Model(x, layers.Activation("log_softmax")(x)))
    data = np.array([[0.0, 9.0, 40.0]], np.float32)
    tfq.calibrate(q, data, observer="min_max", progress=False)
    np.testing.assert_array_equal(q(data), [[-255 / 16, -255 / 16, 0.0]])


@pytest.mark.parametrize("name", ["log_softmax", "unit"])
def test_functions_without_a_kernel_of_16_bits_are_float_there(name, rng, tmp_path):
    x = keras.Input((6,))
    function = layers.UnitNormalization() if name == "unit" else layers.Activation(name)
    model = keras.Model(x, layers.Dense(4)(function(layers.Dense(5)(x))))
    data = rng.normal(size=(32, 6)).astype(np.float32)
    q = tfq.calibrate(tfq.quantize_model(model, "w8a16"), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert {op.reason for op in report.float_operators} == {
        f"layer '{function.name}' ({type(function).__name__}) is not quantized"
    }
    assert report.end_to_end.largest <= 3  # 16-bit steps, through two layers.


@pytest.mark.parametrize(
    "layer",
    [
        *(layers.Activation(name) for name in ("log_softmax", "sigmoid", "softmax", "tanh")),
        layers.LeakyReLU(),
        layers.MaxPooling2D(2),
        layers.AveragePooling2D(2),
        layers.UpSampling2D(2),
        layers.UnitNormalization(),
    ],
    ids=lambda layer: getattr(getattr(layer, "activation", layer), "__name__", layer.name),
)
def test_a_skipped_layer_is_float_between_integers(layer, rng, tmp_path):
    """LiteRT has integer kernels for each; some of them ignore that grids differ."""
    x = keras.Input((6, 6, 3))
    y = layer(layers.Conv2D(5, 1)(x))
    data = rng.normal(size=(32, 6, 6, 3)).astype(np.float32)
    q = tfq.quantize_model(keras.Model(x, layers.Conv2D(4, 1)(y)), skip=[layer.name])
    tfq.calibrate(q, data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert {op.reason for op in report.float_operators} == {
        f"layer '{layer.name}' ({type(layer).__name__}) is not quantized"
    }
    assert report.end_to_end.differing == 0


def heads(x):
    return ops.reshape(layers.Dense(4)(layers.Reshape((6, 24))(conv(x))), (-1, 6, 2, 2))


CAUSAL = np.tril(np.ones((1, 1, 6, 6), bool))

ATTENTION = {
    "plain": lambda x: ops.dot_product_attention(heads(x), heads(x), heads(x)),
    "scaled": lambda x: ops.dot_product_attention(heads(x), heads(x), heads(x), scale=0.3),
    "causal": lambda x: ops.dot_product_attention(heads(x), heads(x), heads(x), is_causal=True),
    "masked": lambda x: ops.dot_product_attention(heads(x), heads(x), heads(x), mask=CAUSAL),
    "softmax": lambda x: layers.Softmax()(conv(x), mask=np.arange(4).reshape(1, 1, 1, 4) != 2),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_out_of_operations_is_matrices_and_a_softmax(name, rng, tmp_path):
    _, _, report = converted(ATTENTION[name], rng, tmp_path, 0.06)
    assert {op.operator for op in report.float_operators} <= {"CAST"}
    assert report.op_by_op.differing == 0 == report.end_to_end.differing


PREPROCESSING = {
    "rescaling": lambda x: layers.Rescaling(1 / 127.5, offset=-1.0)(x),
    "channels": lambda x: layers.Rescaling([0.1, 0.2, 0.3, 0.4], offset=[1.0, 2.0, 3.0, 4.0])(x),
    "normalization": lambda x: layers.Normalization(mean=[1.0, 2, 3, 4], variance=[4.0, 5, 6, 7])(
        x
    ),
    "three": lambda x: layers.Rescaling(2.0)(
        layers.Normalization(mean=[1.0, 2, 3, 4], variance=[4.0, 5, 6, 7])(
            layers.Rescaling(1 / 255)(x)
        )
    ),
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_in_front_of_a_network_is_integer_arithmetic(name, rng, tmp_path):
    _, _, report = converted(lambda x: conv(PREPROCESSING[name](x)), rng, tmp_path)
    assert not report.float_operators
    assert report.end_to_end.differing == 0
    # However many layers, one kernel in front of the convolution.
    assert [layer.operator for layer in report.layers[1:]] == ["DEPTHWISE_CONV_2D", "CONV_2D"]


MERGES = {
    "add": lambda xs: layers.Add()(xs),
    "multiply": lambda xs: layers.Multiply()(xs),
    "maximum": lambda xs: layers.Maximum()(xs),
    "average": lambda xs: layers.Average()(xs),
}


@pytest.mark.parametrize("name", MERGES)
def test_three_tensors_are_merged_in_integers(name, rng, tmp_path):
    make = lambda x: MERGES[name]([conv(x), conv(x), conv(x)])  # noqa: E731
    _, _, report = converted(make, rng, tmp_path)
    assert not report.float_operators
    assert report.end_to_end.differing == 0


@pytest.mark.parametrize("axis", [-1, 3, [3]])
def test_vectors_of_length_one_are_integers_between_integers(axis, rng, tmp_path):
    make = lambda x: conv(layers.UnitNormalization(axis)(conv(x)))  # noqa: E731
    _, _, report = converted(make, rng, tmp_path, 0.1)  # Short vectors are mostly rounding.
    assert not report.float_operators
    assert "L2_NORMALIZATION" in {layer.operator for layer in report.layers}
    assert report.end_to_end.differing == 0


def test_a_dot_layer_of_unit_vectors_is_integer(rng, tmp_path):
    def make(x):
        a, b = (layers.Dense(5)(layers.Flatten()(conv(x))) for _ in range(2))
        return layers.Dot(1, normalize=True)([a, b])

    _, _, report = converted(make, rng, tmp_path, 0.1)
    assert not report.float_operators
    assert sum(layer.operator == "L2_NORMALIZATION" for layer in report.layers) == 2
    assert report.end_to_end.differing == 0


@pytest.mark.parametrize("axes", [2, 1, (2, 2), (1, 2)])
def test_a_dot_layer_is_a_product_of_matrices(axes, rng, tmp_path):
    def make(x):
        sequence = layers.Reshape((36, 4))(conv(x))
        other = layers.Reshape((36, 4) if axes != (1, 2) else (4, 36))(conv(x))
        return layers.Dot(axes)([sequence, other])

    _, _, report = converted(make, rng, tmp_path)
    assert not report.float_operators
    assert report.end_to_end.largest <= 1
