"""Keras models to `.tflite` files that compute the same integers."""

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.litert.flatbuffer import File

IMAGE = (16, 16, 3)


def _randomize(model, rng):
    """Gives batch norms statistics as training would, so that folding has something to do."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _randomize(layer, rng)
        if isinstance(layer, layers.BatchNormalization):
            count = layer.moving_mean.shape[0]
            gamma = rng.uniform(0.5, 1.5, count) * rng.choice([-1, 1], count)
            layer.set_weights(
                [
                    gamma,
                    rng.normal(0, 0.3, count),
                    rng.normal(0, 0.2, count),
                    rng.uniform(0.3, 2, count),
                ]
            )
    return model


def plain_cnn():
    return keras.Sequential(
        [
            keras.Input(IMAGE),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(12, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


def depthwise():
    return keras.Sequential(
        [
            keras.Input(IMAGE),
            layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.SeparableConv2D(8, 3, strides=2, activation="relu"),
            layers.ZeroPadding2D(1),
            layers.DepthwiseConv2D(3, strides=2, use_bias=False),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )


def residual():
    x = inputs = keras.Input(IMAGE)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = layers.Conv2D(8, 3, padding="same")(x)
    y = layers.BatchNormalization()(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    y = layers.Conv2D(8, 1)(x)
    x = layers.Multiply()([x, y])
    x = layers.Subtract()([x, y])
    x = layers.AveragePooling2D(2)(x)
    return keras.Model(inputs, layers.Flatten()(x))


def concatenation():
    x = inputs = keras.Input(IMAGE)
    a = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(4, 1)(x)
    c = layers.MaxPooling2D(3, strides=1, padding="same")(b)
    x = layers.Concatenate()([a, b, c])
    d = layers.Conv2D(4, 3, padding="same")(x)
    x = layers.Concatenate()([x, d])
    return keras.Model(inputs, layers.Conv2D(3, 3)(x))


def lone_batch_norms():
    x = inputs = keras.Input(IMAGE)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(8, 3, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(6, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(4)(x))


def dense_with_batch_norm():
    return keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(16, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.3),
            layers.Dense(16, activation="relu6"),
            layers.Dense(20),
        ]
    )


def transposed():
    return keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2DTranspose(6, 3, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2DTranspose(3, 2, strides=2, activation="relu"),
        ]
    )


def one_dimensional():
    return keras.Sequential(
        [
            keras.Input((32, 6)),
            layers.Conv1D(8, 3, padding="causal", activation="relu"),
            layers.Conv1D(8, 3, strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling1D(2),
            layers.GlobalAveragePooling1D(),
            layers.Dense(4),
        ]
    )


def shared():
    a, b = keras.Input((12,), name="a"), keras.Input((12,), name="b")
    tower = layers.Dense(8, activation="relu", name="tower")
    x = layers.Subtract()([tower(a), tower(b)])
    return keras.Model(
        [a, b], [layers.Dense(3, name="first")(x), layers.Dense(2, name="second")(x)]
    )


def nested():
    inner = keras.Sequential(
        [
            keras.Input((16, 16, 4)),
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(),
        ],
        name="inner",
    )
    x = inputs = keras.Input(IMAGE)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = inner(layers.ReLU()(inner(x)))
    return keras.Model(inputs, layers.GlobalMaxPooling2D()(x))


def activations():
    x = inputs = keras.Input(IMAGE)
    for function in ("silu", "tanh", "sigmoid", "gelu", "elu", "leaky_relu", "hard_swish", "relu"):
        x = layers.Conv2D(4, 1, activation=function)(x)
    gate = layers.Conv2D(4, 1, activation="sigmoid")(x)
    x = layers.Multiply()([x, gate])
    x = layers.Concatenate()([x, gate])
    x = layers.UpSampling2D(2)(layers.Cropping2D(1)(x))
    x = layers.Permute((2, 1, 3))(layers.LeakyReLU(0.2)(x))
    return keras.Model(inputs, layers.Softmax()(layers.Dense(5)(layers.GlobalMaxPooling2D()(x))))


def grouped():
    x = inputs = keras.Input(IMAGE)
    x = layers.Conv2D(8, 3, activation="relu")(x)
    x = layers.Conv2D(8, 3, padding="same", groups=8)(x)
    x = layers.Conv2D(8, 3, padding="same", groups=2, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))


def several_relus_of_one_tensor():
    x = inputs = keras.Input(IMAGE)
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    a = layers.Conv2D(4, 1)(layers.Activation("relu")(x))
    b = layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(x))
    c = layers.Activation("relu")(x)
    y = layers.Concatenate()([a, b, c])
    y = layers.BatchNormalization()(y)
    d, e = layers.ReLU()(y), layers.ReLU()(y)
    return keras.Model(inputs, [layers.GlobalMaxPooling2D()(d), layers.Conv2D(3, 1)(e)])


MODELS = [
    grouped,
    several_relus_of_one_tensor,
    activations,
    plain_cnn,
    depthwise,
    residual,
    concatenation,
    lone_batch_norms,
    dense_with_batch_norm,
    transposed,
    one_dimensional,
    shared,
    nested,
]


def _data(model, rng, rows=32):
    return [rng.normal(size=(rows, *x.shape[1:])).astype("float32") for x in model.inputs]


def _quantized(make, scheme, rng):
    keras.utils.set_random_seed(0)
    model = _randomize(make(), rng)
    data = _data(model, rng)
    q = tfq.quantize_model(model, scheme)
    if tfq.SCHEMES[scheme].static:
        tfq.calibrate(q, data if len(data) > 1 else data[0], progress=False)
    return model, q, data


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_file_computes_the_integers_of_the_model(make, scheme, rng, tmp_path):
    _, q, data = _quantized(make, scheme, rng)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    assert not report.float_operators
    assert not report.saturated_biases
    for layer in report.layers:
        if layer.parity is None:
            continue
        # One step at a kernel that looks values up; elsewhere a tie in 10,000 values.
        allowed = 1 if layer.arithmetic != "exact" else layer.parity.values / 10_000
        assert layer.parity.largest <= 1, layer
        assert layer.parity.differing <= allowed or layer.arithmetic != "exact", layer
    if not any(layer.parity and layer.parity.differing for layer in report.layers):
        # A step in the middle of a network may be several at its end.
        assert report.end_to_end.share_differing <= 0.001
    assert report.end_to_end.rows == len(data[0])


@pytest.mark.parametrize("scheme", ["w8", "w4", "w8a8_dynamic", "f16"])
@pytest.mark.parametrize("make", [plain_cnn, depthwise, shared], ids=lambda f: f.__name__)
def test_weights_only_file_is_smaller_and_agrees(make, scheme, rng, tmp_path):
    _, q, data = _quantized(make, scheme, rng)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    assert report.end_to_end.largest < (0.02 if scheme == "w8a8_dynamic" else 1e-4)
    file = File((tmp_path / "model.tflite").read_bytes())
    stored = {file.type(i) for op in file.ops for i in op.inputs if file.is_constant(i)}
    expected = {"w8": "INT8", "w4": "INT4", "w8a8_dynamic": "INT8", "f16": "FLOAT16"}[scheme]
    assert expected in stored


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("rank", [2, 3])
def test_groups_are_in_the_file_and_litert_computes_with_them(group_size, rank, rng, tmp_path):
    inputs = keras.Input((128,) if rank == 2 else (6, 128))
    x = layers.Dense(24, activation="relu", name="grouped")(inputs)
    model = keras.Model(inputs, layers.Dense(5, name="per_channel")(x))
    # Vectors of one row have ranges of their own.
    data = rng.normal(size=(16, *inputs.shape[1:])) * rng.uniform(0.1, 9, (16, *[1] * (rank - 1)))
    scheme = tfq.Scheme("own", 4, 8, dynamic=True, group_size=group_size)
    q = tfq.quantize_model(model, scheme)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=data.astype("float32"), progress=False)
    # Float sums in another order, each layer on the device's own inputs.
    assert [layer.parity.largest < 1e-6 for layer in report.layers[1:]] == [True]
    assert report.end_to_end.largest < 5e-3  # A tie may go to the other of two integers.
    file = File((tmp_path / "m.tflite").read_bytes())
    op = next(op for op in file.ops if op.name == "FULLY_CONNECTED")
    weights = op.inputs[1]
    assert (file.type(weights), file.group_size(weights)) == ("INT4", group_size)
    assert file.num_bytes(weights) == 128 * 24 // 2
    ((variable, quantizer),) = q.get_layer("quant_grouped").weight_quantizers
    steps = quantizer.steps(variable.value).numpy()
    details = file.subgraph.tensors[weights].quantization.details
    np.testing.assert_array_equal(file.constant(details.scales), steps.T.astype(np.float16))
    np.testing.assert_array_equal(steps.astype(np.float16).astype(np.float32), steps)
    q_float = variable.numpy() / np.repeat(steps, group_size, axis=0)
    np.testing.assert_array_equal(file.constant(weights).T, np.rint(q_float).clip(-7, 7))
    assert report.layers[0].granularity == f"{24 * 128 // group_size} groups of {group_size}"
    assert f"groups of {group_size} do not divide its 24 inputs" in str(report)
    assert tfq.inspect(tmp_path / "m.tflite").operators[op.index].granularity == (
        f"per group of {group_size}"
    )


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("w4_g32", "4-bit weights in groups of 32"),
        (tfq.Scheme("own", 4, 8, group_size=64), "4-bit weights in groups of 64"),
        (tfq.Scheme("own", 8, 8, dynamic=True, group_size=32), "8-bit weights in groups of 32"),
    ],
    ids=["float", "static", "wide"],
)
def test_groups_that_litert_does_not_multiply_are_refused(scheme, words, rng, tmp_path):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(8, name="d"), layers.Dense(2)])
    q = tfq.quantize_model(model, scheme)
    if not isinstance(scheme, str) and scheme.static:
        tfq.calibrate(q, rng.normal(size=(8, 64)).astype("float32"), progress=False)
    words = rf"scheme 'w4a8_g32'\. Received: layers \['d'\] of {words}\. .*tfq\.to_packed"
    with pytest.raises(ValueError, match=words):
        tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [plain_cnn, residual, shared], ids=lambda f: f.__name__)
def test_wide_activations_agree_with_the_device(make, rng, tmp_path):
    _, q, data = _quantized(make, "w8a16", rng)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    for layer in report.layers:
        if layer.parity is not None and layer.arithmetic == "exact":
            assert layer.parity.largest <= 1, layer


def test_four_bit_weights_are_four_bit_in_the_file(rng, tmp_path):
    _, q, data = _quantized(plain_cnn, "w4a8", rng)
    tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    file = File((tmp_path / "model.tflite").read_bytes())
    kernels = [op for op in file.ops if op.name in ("CONV_2D", "FULLY_CONNECTED")]
    for op in kernels:
        weights = op.inputs[1]
        assert file.type(weights) == "INT4"
        assert file.num_bytes(weights) == (np.prod(file.shape(weights)) + 1) // 2
    assert not [op.name for op in file.ops if op.name == "DEQUANTIZE"]


@pytest.mark.parametrize(
    ("input_type", "output_type"),
    [("int8", "int8"), ("uint8", "uint8"), ("float32", "float32"), ("uint8", "float32")],
)
def test_inputs_and_outputs_have_the_types_asked_for(input_type, output_type, rng, tmp_path):
    _, q, data = _quantized(residual, "w8a8", rng)
    path = tmp_path / "model.tflite"
    report = tfq.to_tflite(
        q, path, input_type=input_type, output_type=output_type, samples=data, progress=False
    )
    file = File(path.read_bytes())
    assert [file.type(i).lower() for i in file.inputs] == [input_type]
    assert [file.type(i).lower() for i in file.outputs] == [output_type]
    inner = [op.name for op in file.ops[1:-1]]
    assert "QUANTIZE" not in inner
    assert "DEQUANTIZE" not in inner
    assert report.end_to_end.largest <= 1e-6 or report.end_to_end.in_steps
    assert report.end_to_end.share_differing <= 0.001


def test_default_types_are_those_of_the_activations(rng, tmp_path):
    path = tmp_path / "model.tflite"
    for scheme, kind in (("w8a8", "INT8"), ("w8a16", "INT16"), ("w8", "FLOAT32")):
        _, q, _ = _quantized(dense_with_batch_norm, scheme, rng)
        tfq.to_tflite(q, path, progress=False, verify=False)
        file = File(path.read_bytes())
        assert [file.type(i) for i in (*file.inputs, *file.outputs)] == [kind, kind]


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_batch_dimension_is_as_asked_and_the_file_stays_integer(batch_size, rng, tmp_path):
    _, q, data = _quantized(plain_cnn, "w8a8", rng)
    path = tmp_path / "model.tflite"
    report = tfq.to_tflite(q, path, batch_size=batch_size, samples=data, progress=False)
    assert report.end_to_end.share_differing <= 0.001
    file = File(path.read_bytes())
    assert "DEQUANTIZE" not in [op.name for op in file.ops]
    signature = file.subgraph.tensors[file.inputs[0]].shapeSignature
    assert (
        (signature[0] == -1) if batch_size is None else file.shape(file.inputs[0])[0] == batch_size
    )


def test_verification_finds_a_wrong_file(rng, tmp_path, monkeypatch):
    from tfquant.tflite import convert

    _, q, data = _quantized(plain_cnn, "w8a8", rng)
    real_assign = convert.assign

    def wrong(*args):
        assignment = real_assign(*args)
        bias = next(p for p in assignment.stored.values() if p.data.dtype == np.int32)
        bias.data[:] += 50
        return assignment

    monkeypatch.setattr(convert, "assign", wrong)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    assert report.op_by_op.differing > 100


def test_report_is_json_and_text(rng, tmp_path):
    _, q, data = _quantized(plain_cnn, "w8a8", rng)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    assert report.quantized_bytes == (tmp_path / "model.tflite").stat().st_size
    assert report.quantized_bytes < report.float_bytes / 2
    assert '"quantized_bytes"' in report.to_json()
    text = str(report)
    assert "0 of" in text
    assert "CONV_2D" in text


def as_float32(x):
    return np.asarray(keras.ops.cast(x, "float32"))


def attention_and_recurrence():
    inputs = keras.Input((3, 8))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    x = layers.LSTM(5)(layers.Add()([x, inputs]))
    return keras.Model(inputs, layers.Dense(3)(x))


@pytest.mark.parametrize(
    ("policy", "make"),
    [
        ("mixed_bfloat16", plain_cnn),
        ("mixed_bfloat16", attention_and_recurrence),
        ("mixed_float16", plain_cnn),
        ("bfloat16", depthwise),
    ],
)
def test_a_model_of_half_precision_becomes_an_integer_file(policy, make, rng, tmp_path):
    outer = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = _randomize(make(), rng)
        data = rng.normal(size=(32, *model.input_shape[1:])).astype(np.float32)
        q = tfq.calibrate(tfq.quantize_model(model, skip=[model.layers[-1]]), data, progress=False)
        report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
        assert keras.config.dtype_policy().name == policy
        q.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(as_float32(loaded(data)), as_float32(q(data)))
    finally:
        keras.config.set_dtype_policy(outer)
    exact = [x.parity for x in report.layers if x.parity is not None and x.arithmetic == "exact"]
    assert len(exact) > 3 and all(parity.largest <= 1 for parity in exact)
    assert "FULLY_CONNECTED" in {x.operator for x in report.float_operators}
    assert not any(x.operator in ("CONV_2D", "BATCH_MATMUL") for x in report.float_operators)
    expected = as_float32(model(data))
    np.testing.assert_allclose(as_float32(q(data)), expected, atol=0.1 * np.abs(expected).max())


def test_layers_are_found_where_rounding_has_grown_beyond_recognition(rng, tmp_path):
    # Each layer makes a difference some three times larger.
    parts = [layers.Dense(32, activation="tanh") for _ in range(24)]
    model = keras.Sequential([keras.Input((32,)), *parts])
    for layer in parts:
        layer.set_weights([rng.normal(0, 1.0, (32, 32)), rng.normal(0, 0.1, 32)])
    data = rng.normal(size=(32, 32)).astype(np.float32)
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    checked = [x for x in report.layers if x.parity is not None]
    assert sum(x.operator == "FULLY_CONNECTED" for x in checked) == len(parts)
    assert not report.float_operators and report.end_to_end.differing == 0


def test_a_layer_that_was_not_found_in_the_file_is_named(rng, tmp_path, monkeypatch, caplog):
    from tfquant.skeleton import anchor

    _, q, data = _quantized(residual, "w8a8", rng)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    assert not report.lost_layers and "not found" not in str(report) + caplog.text
    real = anchor._computed
    first = next(layer.name for layer in report.layers if layer.operator == "ADD")

    def forgetful(file, op, position, operations):
        if f"/{first}_" in file.name(op.outputs[0]):
            return None
        return real(file, op, position, operations)

    monkeypatch.setattr(anchor, "_computed", forgetful)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    assert report.lost_layers == [first]
    assert f"not found in the file, so that their ranges are not in it: '{first}'" in str(report)
    (record,) = [x for x in caplog.records if x.name == "tfquant"]
    assert record.levelname == "WARNING" and f"'{first}'" in record.getMessage()
