"""Functions of `keras.ops` as a model's output, as a layer's input, and behind a permutation."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq
from tfquant.wrappers import Quantize

FUNCTIONS = {
    name: getattr(ops, name)
    for name in (
        *("abs", "celu", "elu", "exp", "expm1", "gelu", "glu", "hard_sigmoid", "hard_silu"),
        *("hard_tanh", "leaky_relu", "log_sigmoid", "log_softmax", "negative", "relu", "relu6"),
        *("sigmoid", "silu", "sin", "softmax", "softplus", "square", "tanh", "tanh_shrink"),
    )
}
FUNCTIONS |= {
    "clip": lambda x: ops.clip(x, -0.5, 0.5),
    "clip_to_1": lambda x: ops.clip(x, 0.0, 1.0),
    "clip_one_sided": lambda x: ops.clip(x, 0.1, 1.5),
    "amax": lambda x: ops.amax(x, axis=1),
    "amin": lambda x: ops.amin(x, axis=1),
    "tril": ops.tril,
    "average_pool": lambda x: ops.average_pool(x, 2),
    "deg2rad": ops.deg2rad,
    "diff": lambda x: ops.diff(x, n=2, axis=1),
    "max_pool": lambda x: ops.max_pool(x, 3, strides=1, padding="same"),
    "median": lambda x: ops.median(x, axis=1, keepdims=True),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 0)), constant_values=0.7),
    "pad_zeros": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 0))),
    "sqrt": lambda x: ops.sqrt(ops.abs(x)),
    "log": lambda x: ops.log(ops.abs(x) + 0.5),
    "maximum": lambda x: ops.maximum(x, -x),
    "rsqrt": lambda x: ops.rsqrt(ops.abs(x) + 0.5),
}
# In dB, with weights of 8 and of 4 bits.
LEAST = {"w8a16": 35, "w4a8": 8}
INTEGER = {
    "average_pool",
    "celu",
    "clip",
    "clip_one_sided",
    "clip_to_1",
    "deg2rad",
    "diff",
    "expm1",
    "glu",
    "hard_tanh",
    "max_pool",
    "maximum",
    "pad_zeros",
    "tanh_shrink",
}


def transposed(x):
    return ops.transpose(x, (0, 2, 1))  # Square: a mistake of axes fits all the same.


@pytest.mark.parametrize("before", [lambda x: x, transposed], ids=["plain", "transposed"])
@pytest.mark.parametrize("behind", [False, True], ids=["output", "middle"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_computes_what_its_file_does(name, behind, before, rng, tmp_path):
    inputs = keras.Input((6, 6))
    y = FUNCTIONS[name](before(layers.Dense(6)(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(y) if behind else y)
    data = rng.normal(size=(64, 6, 6)).astype(np.float32)
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.broken_claims == []
    assert all(layer.parity is None or not layer.parity.differing for layer in report.layers)
    expected, received = (m.predict(data, verbose=0) for m in (model, q))
    noise = np.mean((expected - received) ** 2)
    assert 10 * np.log10(np.mean(expected**2) / noise) > 25
    if report.end_to_end.in_steps:
        assert report.end_to_end.differing == 0
    else:  # A function in float behind integers: its output is rounded in the model alone.
        assert report.end_to_end.largest < 0.01
    if name in INTEGER:
        assert not report.float_operators


@pytest.mark.parametrize("scheme", ["w8a16", "w4a8"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_computes_what_its_file_does_at_other_widths(name, scheme, rng, tmp_path):
    inputs = keras.Input((6, 6))
    model = keras.Model(inputs, layers.Dense(3)(FUNCTIONS[name](layers.Dense(6)(inputs))))
    data = rng.normal(size=(64, 6, 6)).astype(np.float32)
    q = tfq.calibrate(tfq.quantize_model(model, scheme), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.broken_claims == []
    by_file, by_model = tfq.run(tmp_path / "m.tflite", data), q.predict(data, verbose=0)
    for y in (by_file, by_model):
        noise = np.mean((model.predict(data, verbose=0) - y) ** 2)
        assert 10 * np.log10(np.mean(model.predict(data, verbose=0) ** 2) / noise) > LEAST[scheme]
    share = report.end_to_end.differing / report.end_to_end.values
    assert share < 0.02 and report.end_to_end.largest <= 1
    if not report.float_operators:
        assert report.end_to_end.differing == 0


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a8"])
@pytest.mark.parametrize("bias", ["uniform", "zeros", None])
@pytest.mark.parametrize("shape", [(1,), (5, 1), (4, 4, 1)])
def test_a_kernel_of_one_input_is_a_product_of_matrices(shape, bias, scheme, rng, tmp_path):
    inputs = keras.Input(shape)
    y = layers.Dense(3, use_bias=bias is not None, bias_initializer=bias or "zeros")(inputs)
    model = keras.Model(inputs, layers.Dense(4, bias_initializer="uniform")(y))
    data = rng.normal(size=(64, *shape)).astype(np.float32)
    q = tfq.calibrate(tfq.quantize_model(model, scheme), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.end_to_end.differing == 0 and not report.float_operators
    products = [layer for layer in report.layers if layer.operator == "FULLY_CONNECTED"]
    assert len(products) == 2 and all(layer.arithmetic == "exact" for layer in products)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a8", "w8a8_dynamic", "w8"])
@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 6)])
def test_a_bias_stays_in_its_product_where_the_batch_is_free(shape, scheme, rng, tmp_path):
    inputs = keras.Input(shape)
    y = layers.Dense(6, "relu", bias_initializer="uniform")(inputs)
    turned = layers.Permute((2, 1) if len(shape) == 2 else (2, 1, 3))(y)
    model = keras.Model(inputs, layers.Dense(4, bias_initializer="uniform")(turned))
    data = rng.normal(size=(64, *shape)).astype(np.float32)
    q = tfq.quantize_model(model, scheme)
    if tfq.SCHEMES[scheme].static:
        tfq.calibrate(q, data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", batch_size=None, samples=data, progress=False)
    assert "ADD" not in {op.operator for op in (*report.layers, *report.float_operators)}
    assert report.end_to_end.largest <= (0 if tfq.SCHEMES[scheme].static else 1e-5)
    if tfq.SCHEMES[scheme].static:
        assert not report.float_operators


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_kernels_of_two_widths_read_an_input_each_in_its_own(batch_size, rng, tmp_path):
    inputs = keras.Input((5, 6))
    outputs = [layers.LSTM(4, return_sequences=True)(inputs), layers.Dense(3)(inputs)]
    data = rng.normal(size=(48, 5, 6)).astype(np.float32)
    q = tfq.calibrate(tfq.quantize_model(keras.Model(inputs, outputs)), data, progress=False)
    path = tmp_path / "m.tflite"
    report = tfq.to_tflite(q, path, batch_size=batch_size, progress=False)
    assert report.end_to_end.differing == 0 and not report.float_operators


@pytest.mark.parametrize("norms", ["integer", "float"])
@pytest.mark.parametrize("with_itself", [True, False])
def test_a_product_with_a_transposed_norm_is_one_of_integers(with_itself, norms, rng, tmp_path):
    inputs = keras.Input((5, 6))
    y = layers.RMSNormalization()(inputs)
    turned = ops.transpose(y, (0, 2, 1))
    model = keras.Model(inputs, ops.matmul(y if with_itself else inputs, turned))
    data = rng.normal(size=(48, 5, 6)).astype(np.float32)
    q = tfq.calibrate(tfq.quantize_model(model, norms=norms), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    product = report.layers[-1]
    assert product.operator == "BATCH_MATMUL" and product.arithmetic == "exact"
    assert not report.lost_layers and report.end_to_end.differing == 0
    grids = [x.quantizer.spec.num_bits for x in q.layers if isinstance(x, Quantize)]
    # That of the input where it is read in 8 bits, and one of the norm for both operands.
    assert grids.count(8) == 1 + (norms == "integer" or not with_itself)


def test_an_einsum_whose_second_operand_comes_first_needs_no_permutation(rng, tmp_path):
    x = keras.Input((6, 2, 4))
    key, query = (layers.EinsumDense("abcd,de->abce", (None, 2, 4))(x) for _ in range(2))
    scores = ops.einsum("aecd,abcd->acbe", key, query) * 0.5
    model = keras.Model(x, layers.Softmax()(scores))
    data = rng.normal(size=(64, 6, 2, 4)).astype(np.float32)
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.broken_claims == [] and report.op_by_op.differing == 0
    assert report.end_to_end.differing == 0
    operators = [op.operator for op in tfq.inspect(tmp_path / "m.tflite").operators]
    assert operators.count("TRANSPOSE") == 2  # Of the operands alone.
