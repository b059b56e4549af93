"""Integers and truth values have no grid, whatever moves them or computes with them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq

ROWS = 400  # More than an 8-bit grid tells apart: an id on a grid finds another row.


def sqnr(expected, got):
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    return 10 * np.log10(np.sum(expected**2) / np.sum((expected - got) ** 2))


def small(x):
    return ops.mod(x, 100)


# What computes ids in front of a table, from ids `u` and `v`.
IDS = {
    "abs": lambda u, v: ops.abs(u - v),
    "add": lambda u, v: u + v,
    "add_layer": lambda u, v: layers.Add()([u, v]),
    "add_three": lambda u, v: layers.Add()([u, v, u]),
    "add_vector": lambda u, v: u + np.arange(6, dtype="int32"),
    "concatenate": lambda u, v: layers.Concatenate()([u, v]),
    "constants": lambda u, v: ops.clip(u * 2 + 1, 1, 50),
    "matmul": lambda u, v: small(ops.matmul(u[:, :, None], v[:, None, :]))[:, 0],
    "masked": lambda u, v: u * ops.cast(v > 50, "int32"),
    "max_pool": lambda u, v: layers.MaxPooling1D(2)(layers.Reshape((6, 1))(u))[:, :, 0],
    "maximum": lambda u, v: ops.maximum(u, v),
    "maximum_layer": lambda u, v: layers.Maximum()([u, v]),
    "minus_min": lambda u, v: u - ops.min(u, axis=1, keepdims=True) + 1,
    "mod": lambda u, v: ops.mod(u, 7) + ops.floor_divide(v, 3),
    "multiply_layer": lambda u, v: small(layers.Multiply()([u, v])),
    "relu": lambda u, v: ops.relu(u - v),
    "repeat": lambda u, v: layers.RepeatVector(2)(u)[:, 0],
    "square": lambda u, v: small(ops.square(u) - ops.negative(v)),
    "subtract_layer": lambda u, v: ops.abs(layers.Subtract()([u, v])),
    "where": lambda u, v: ops.where(u > v, u, v),
}

# What makes real numbers of them.
REALS = {
    "average": lambda u, v: layers.Average()([u, v]),
    "cast_dot": lambda u, v: ops.cast(layers.Dot(1)([u, v]), "float32"),
    "cast_product": lambda u, v: ops.cast(u * v, "float32"),
    "cast_sum": lambda u, v: ops.cast(u + v, "float32"),
    "dense": lambda u, v: u,
    "logical": lambda u, v: ops.cast(ops.logical_and(u > v, v > 3), "float32"),
    "mean": lambda u, v: ops.mean(ops.stack([u, v], -1), -1),
}


def check(model, data, path, least=30):
    q = tfq.quantize_model(model)
    tfq.calibrate(q, data, progress=False)
    report = tfq.to_tflite(q, path / "m.tflite", progress=False)
    assert sqnr(model(data), q(data)) > least
    apart = report.end_to_end
    # A Dense of integers computes in float, whose sums come in another order.
    assert apart.differing == 0 if apart.in_steps else apart.largest < 1e-2
    return report


def two_inputs(rng):
    inputs = [keras.Input((6,), dtype="int32") for _ in range(2)]
    return inputs, [rng.integers(1, 100, (64, 6)).astype("int32") for _ in range(2)]


def table(rng):
    layer = layers.Embedding(ROWS, 8)
    layer.build((None,))
    layer.set_weights([rng.normal(size=(ROWS, 8))])
    return layer


@pytest.mark.parametrize("name", IDS)
def test_ids_computed_in_front_of_a_table_find_their_rows(rng, name, tmp_path):
    inputs, data = two_inputs(rng)
    model = keras.Model(inputs, layers.Dense(3)(table(rng)(IDS[name](*inputs))))
    report = check(model, data, tmp_path)
    assert report.op_by_op.differing == 0


@pytest.mark.parametrize("name", REALS)
def test_real_numbers_made_of_integers_are_quantized_behind_them(rng, name, tmp_path):
    inputs, data = two_inputs(rng)
    check(keras.Model(inputs, layers.Dense(3)(REALS[name](*inputs))), data, tmp_path)


@pytest.mark.parametrize(
    "use",
    [
        lambda find, u: find(u),
        lambda find, u: find(layers.Reshape((3, 2))(u)),
        lambda find, u: find(u + 1.0),
        lambda find, u: layers.Concatenate()([layers.Flatten()(find(u)), u * 0.01]),
    ],
    ids=["as they come", "reshaped", "shifted", "numbers as well"],
)
def test_ids_given_as_real_numbers_find_their_rows(rng, use, tmp_path):
    u = keras.Input((6,))
    model = keras.Model(u, layers.Dense(3)(use(table(rng), u)))
    check(model, rng.integers(0, ROWS - 1, (64, 6)).astype("float32"), tmp_path)


def test_an_input_of_two_widths_is_read_in_both(rng, tmp_path):
    x = keras.Input((5, 6))
    wide, turned = layers.GRU(4, return_sequences=True)(x), ops.transpose(x, (0, 2, 1))
    model = keras.Model(x, [wide, ops.matmul(x, turned), layers.Dense(3)(x)])
    data = rng.normal(size=(64, 5, 6)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.end_to_end.differing == 0 and report.broken_claims == []
    assert not report.float_operators


@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("combine", ["add", "multiply", "maximum", "minimum", "where", "join"])
def test_a_constant_is_the_same_in_every_row(combine, batch_size, rng, tmp_path):
    values = ops.convert_to_tensor(rng.normal(size=(1, 4, 6)).astype("float32"))
    combined = {
        "where": lambda x: ops.where(x > 0, x, ops.zeros_like(x)),
        "join": lambda x: layers.Concatenate()([ops.relu(x), ops.ones_like(x)]),
    }.get(combine, lambda x: getattr(ops, combine)(x, values))
    x = keras.Input((4, 6))
    model = keras.Model(x, layers.Dense(3)(combined(layers.Dense(6)(x))))
    data = rng.normal(size=(64, 4, 6)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", batch_size=batch_size, progress=False)
    assert report.end_to_end.differing == 0 and report.broken_claims == []
    expected, received = np.asarray(model(data)), tfq.run(tmp_path / "m.tflite", data)
    assert np.mean((expected - received) ** 2) < 1e-3 * np.mean(expected**2)
