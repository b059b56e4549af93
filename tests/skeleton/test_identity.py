"""Which tensor of a file is which: by structure, whatever the values are."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfquant as tfq
from tfquant.skeleton import float_file


def converted(model, data, path, scheme="w8a8", **settings):
    q = tfq.calibrate(tfq.quantize_model(model, scheme), data, progress=False)
    return q, tfq.to_tflite(q, path, progress=False, **settings)


def device(path, *rows):
    """Returns the real values that a file computes, row by row."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    found = []
    for row in zip(*rows, strict=True):
        for detail, values in zip(interpreter.get_input_details(), row, strict=True):
            interpreter.set_tensor(detail["index"], stored(values[None], detail))
        interpreter.invoke()
        outputs = interpreter.get_output_details()
        found.append([real(interpreter.get_tensor(x["index"])[0], x) for x in outputs])
    return [np.stack(part) for part in zip(*found, strict=True)]


def stored(values, detail):
    scale, zero_point = detail["quantization"]
    if not scale:
        return values
    info = np.iinfo(detail["dtype"])
    q = np.rint(values / np.float32(scale)) + zero_point
    return np.clip(q, info.min, info.max).astype(detail["dtype"])


def real(values, detail):
    scale, zero_point = detail["quantization"]
    return (values.astype("float32") - zero_point) * scale if scale else values


def noise(received, expected):
    return np.square(received - expected).mean() / np.square(expected).mean()


@pytest.mark.parametrize("first", ["differ", "equal", "zeros"])
def test_inputs_that_are_equal_in_the_first_row_keep_their_grids(first, rng, tmp_path):
    a = rng.uniform(0, 1, (60, 8)).astype("float32")
    b = rng.uniform(0, 3, (60, 8)).astype("float32")
    if first != "differ":
        a[0] = 0 if first == "zeros" else a[0]
        b[0] = a[0]
    inputs, shared = [keras.Input((8,), name=name) for name in "ab"], layers.Dense(6)
    model = keras.Model(inputs, layers.Subtract()([shared(x) for x in inputs]))
    path = tmp_path / "m.tflite"
    _, report = converted(model, [a, b], path)
    assert report.end_to_end.differing == 0 and report.op_by_op.differing == 0
    assert noise(device(path, a, b)[0], model.predict([a, b], verbose=0)) < 1e-3


def test_twins_that_are_always_equal_compute_what_the_model_does(rng, tmp_path):
    rows = rng.normal(size=(60, 8)).astype("float32")
    inputs, shared = [keras.Input((8,)) for _ in range(2)], layers.Dense(6, activation="relu")
    towers = [shared(x) for x in inputs]
    model = keras.Model(inputs, [layers.Add()(towers), layers.Multiply()(towers)])
    path = tmp_path / "m.tflite"
    _, report = converted(model, [rows, rows], path)
    assert report.end_to_end.differing == 0
    for received, expected in zip(device(path, rows, rows), model([rows, rows]), strict=True):
        assert noise(received, np.asarray(expected)) < 1e-3


@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU, layers.SimpleRNN])
@pytest.mark.parametrize("state", [False, True])
def test_one_step_of_a_recurrent_layer_is_found(layer, state, rng, tmp_path):
    rows = rng.normal(size=(64, 1, 4)).astype("float32")
    x = keras.Input((1, 4))
    found = layer(6, return_sequences=True, return_state=state)(x)
    found = found if state else [found]
    model = keras.Model(x, [layers.Dense(3)(found[0]), *found[1:]])
    path = tmp_path / "m.tflite"
    _, report = converted(model, rows, path)
    assert not report.float_operators and report.end_to_end.largest <= 3
    for received, expected in zip(
        device(path, rows), keras.tree.flatten(model.predict(rows, verbose=0)), strict=True
    ):
        assert noise(received, expected) < 1e-3


def test_initial_states_of_zeros_are_not_taken_for_one_another(rng, tmp_path):
    rows = rng.normal(size=(40, 3, 4)).astype("float32")
    rest = [rng.normal(size=(40, 6)).astype("float32") * gain for gain in (0.2, 3)]
    for states in rest:
        states[0] = 0
    x, states = keras.Input((3, 4)), [keras.Input((6,)) for _ in range(2)]
    found = layers.LSTM(6, return_state=True)(x, initial_state=states)
    model = keras.Model([x, *states], found)
    path = tmp_path / "m.tflite"
    converted(model, [rows, *rest], path)
    expected = model.predict([rows, *rest], verbose=0)
    for received, wanted in zip(device(path, rows, *rest), expected, strict=True):
        assert noise(received, wanted) < 1e-3


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8", "w8a8_dynamic", "f16"])
def test_equal_kernels_with_different_biases_on_one_input_stay_apart(scheme, rng, tmp_path):
    rows = rng.normal(size=(40, 8)).astype("float32")
    x, kernel = keras.Input((8,)), rng.normal(size=(8, 5))
    heads = [layers.Dense(5) for _ in range(3)]
    model = keras.Model(x, [head(x) for head in heads])
    for number, head in enumerate(heads):
        head.set_weights([kernel, np.full(5, 4.0 * number)])
    q = tfq.quantize_model(model, scheme)
    if tfq.SCHEMES[scheme].static:
        tfq.calibrate(q, rows, progress=False)
    path = tmp_path / "m.tflite"
    tfq.to_tflite(q, path, samples=rows, progress=False)
    operators = [op for op in tfq.inspect(path).operators if op.operator == "FULLY_CONNECTED"]
    assert len(operators) == 3
    for received, expected in zip(device(path, rows), model(rows), strict=True):
        assert noise(received, np.asarray(expected)) < (2e-2 if scheme == "w4a8" else 1e-3)


def test_weights_of_a_layer_of_ones_own_are_found_in_any_layout(rng, tmp_path):
    @keras.saving.register_keras_serializable(package="test_identity")
    class Mixing(keras.layers.Layer):
        """Multiplies by a square matrix and by its transpose."""

        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], shape[-1]), name="w")

        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(self.w)) + x

    rows = rng.normal(size=(40, 6)).astype("float32")
    x = keras.Input((6,))
    model = keras.Model(x, Mixing()(x))
    q = tfq.quantize_model(model, "w8")
    path = tmp_path / "m.tflite"
    tfq.to_tflite(q, path, samples=rows, progress=False)
    types = {op.weight_type for op in tfq.inspect(path).operators}
    assert "INT8" in types
    assert noise(device(path, rows)[0], np.asarray(model(rows))) < 1e-3


def test_weights_that_the_converter_computes_with_are_right(rng, tmp_path):
    """A table of which constants choose rows becomes a constant itself."""

    @keras.saving.register_keras_serializable(package="test_identity")
    class Positions(keras.layers.Layer):
        """Adds a table, read backwards."""

        def build(self, shape):
            self.w = self.add_weight(shape=(shape[1], shape[2]), name="w")

        def call(self, x):
            return x + keras.ops.take(self.w, keras.ops.arange(x.shape[1])[::-1], axis=0)

    rows = rng.normal(size=(40, 5, 6)).astype("float32")
    x = keras.Input((5, 6))
    model = keras.Model(x, layers.Dense(3)(Positions()(x)))
    q = tfq.quantize_model(model, "w8")
    path = tmp_path / "m.tflite"
    tfq.to_tflite(q, path, samples=rows, progress=False)
    assert noise(device(path, rows)[0], np.asarray(model(rows))) < 1e-3


@pytest.mark.parametrize("length", [6, 8, 24])
def test_what_a_dense_layer_of_sequences_reads_is_not_what_it_returns(length, rng, tmp_path):
    # As many values in as out, and a reshape in front that is named for the product.
    inputs = keras.Input((length, 8))
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 4)(inputs, inputs))
    rows = rng.normal(size=(32, length, 8)).astype("float32")
    path = tmp_path / "m.tflite"
    _, report = converted(model, rows, path)
    assert report.op_by_op.differing == 0 and report.end_to_end.differing == 0
    (received,) = device(path, rows)
    assert noise(received, model.predict(rows, verbose=0)) < 0.01


def test_kernels_of_convolutions_never_enter_the_converter(rng, tmp_path, monkeypatch):
    """What the converter writes is a fraction of the weights that the file ends up with."""
    sizes, convert = [], float_file._converted

    def noted(*args):
        content = convert(*args)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(float_file, "_converted", noted)
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    y = layers.DepthwiseConv2D(5, padding="same", activation="relu")(y)
    model = keras.Model(x, layers.Conv2D(64, 3, dilation_rate=2, padding="same")(y))
    data = rng.normal(size=(8, 8, 8, 3)).astype("float32")
    _, report = converted(model, data, tmp_path / "m.tflite")
    weights = 4 * sum(w.size for w in model.get_weights() if w.ndim > 1)
    assert len(sizes) == 1 and sizes[0] < weights / 10
    assert report.end_to_end.differing == 0 and report.float_bytes > weights


def siamese():
    inputs, shared = [keras.Input((8,)) for _ in range(2)], layers.Dense(6, activation="relu")
    towers = [shared(x) for x in inputs]
    return keras.Model(inputs, [layers.Subtract()(towers), *towers])


def same_weights():
    """Heads of equal kernels and biases on one input, with different grids behind them."""
    x = keras.Input((8,))
    heads = [layers.Dense(6, kernel_initializer="ones") for _ in range(2)]
    return keras.Model(x, [heads[0](x), layers.ReLU(max_value=0.5)(heads[1](x))])


def states():
    x, start = keras.Input((3, 4)), [keras.Input((6,)) for _ in range(2)]
    return keras.Model([x, *start], layers.LSTM(6, return_state=True)(x, initial_state=start))


def residual():
    x = keras.Input((6, 6, 4))
    y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    return keras.Model(x, [layers.Add()([x, y]), layers.Concatenate()([y, x])])


@pytest.mark.parametrize("make", [siamese, same_weights, states, residual])
def test_no_row_decides_which_tensor_is_which(make, rng, tmp_path):
    """Rows of zeros, and of one value, make all tensors of a shape equal."""
    model = make()
    rows = [
        (rng.normal(size=(40, *x.shape[1:])) * gain).astype("float32")
        for x, gain in zip(model.inputs, (0.3, 1, 3), strict=False)
    ]
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    found = []
    for samples in (rows, [x * 0 for x in rows], [x * 0 + 1 for x in rows]):
        path = tmp_path / "m.tflite"
        report = tfq.to_tflite(q, path, samples=samples, progress=False)
        assert report.end_to_end.differing == 0 and not report.lost_layers
        interpreter = Interpreter(str(path))
        details = interpreter.get_tensor_details()
        found.append([(list(x["shape"]), x["dtype"], x["quantization"]) for x in details])
    assert found[0] == found[1] == found[2]
    outputs = keras.tree.flatten(model.predict(rows if len(rows) > 1 else rows[0], verbose=0))
    for received, expected in zip(device(path, *rows), outputs, strict=True):
        assert noise(received, expected) < 1e-2
