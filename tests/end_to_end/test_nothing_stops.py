"""What models of other people ended in an exception with: each is quantized and written."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq

TOKENS, VECTORS = (10,), (6, 8)


class Pair(layers.Layer):
    """Returns what it computes and what it was given; knows a mask and a bias."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(8)
        self.supports_masking = True

    def call(self, x, mask=None, bias=None, causal=False):
        y = self.dense(x)
        return (y if bias is None else y + bias), x


class Twice(layers.Layer):
    """Calls a layer with tensors and others, as a T5 does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pair = Pair()

    def call(self, x, mask):
        y, _ = self.pair(x, mask=mask, bias=None, causal=False)
        return self.pair(y, mask=mask, bias=x, causal=True)[0]


class Further(layers.Layer):
    """Returns a further output that depends on no input."""

    def __init__(self, further, **kwargs):
        super().__init__(**kwargs)
        self.further, self.dense = further, layers.Dense(8)

    def get_config(self):
        return {**super().get_config(), "further": self.further}

    def call(self, x):
        return self.dense(x), ops.ones(self.further)


class Endpoint(layers.Layer):
    """Adds a loss of labels to what it hands on (keras.io, captcha OCR)."""

    def call(self, labels, logits):
        rows = ops.ones((ops.shape(logits)[0],), "int32")
        self.add_loss(ops.mean(ops.ctc_loss(labels, logits, rows * 3, rows * 6)))
        return logits


class Blocks(layers.Layer):
    """Has no `get_config`."""

    def __init__(self, width, depth, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [layers.Dense(width) for _ in range(depth)]

    def call(self, x):
        for block in self.blocks:
            x = ops.relu(block(x))
        return x


def distance(pair):
    return ops.sqrt(ops.sum(ops.square(pair[0] - pair[1]), axis=1, keepdims=True) + 1e-7)


def of_tokens(combine, shape=TOKENS):
    ids = keras.Input(shape, dtype="int32")
    a, b = (layers.Embedding(20, 8, mask_zero=True)(ids) for _ in range(2))
    return keras.Model(ids, layers.Dense(4)(combine(a, b)))


def of_vectors(make, shape=VECTORS):
    x = keras.Input(shape)
    return keras.Model(x, make(x))


def siamese():
    a, b, shared = keras.Input((8,)), keras.Input((8,)), layers.Dense(4)
    pair = [shared(a), shared(b)]
    return keras.Model([a, b], layers.Dense(1)(layers.Lambda(distance)(pair)))


def with_labels():
    x, labels = keras.Input(VECTORS), keras.Input((3,), dtype="int32")
    return keras.Model([x, labels], Endpoint()(labels, layers.Dense(5)(x)))


def like_t5():
    x, mask = keras.Input(VECTORS), keras.Input((6,), dtype="int32")
    return keras.Model([x, mask], Twice()(x, mask))


WEIGHTS = np.random.default_rng(1).normal(size=(1, 6, 2, 8)).astype("float32")
gap = layers.GlobalAveragePooling1D
MODELS = {
    "add of masked": lambda: of_tokens(lambda a, b: layers.Add()([a, b])),
    "concatenate of masked": lambda: of_tokens(lambda a, b: layers.Concatenate()([a, b])),
    "multiply of masked": lambda: of_tokens(lambda a, b: layers.Multiply()([a, b])),
    "two masked lstms": lambda: of_tokens(
        lambda a, b: layers.LSTM(4)(layers.LSTM(4, return_sequences=True)(a)), (3,)
    ),
    "mask past an operation": lambda: of_tokens(lambda a, b: gap()(a + b)),
    "masked mean of channels first": lambda: of_tokens(
        lambda a, b: gap(data_format="channels_first")(layers.Dense(10)(a))
    ),
    "einsum with a constant": lambda: of_vectors(
        lambda x: ops.einsum("bqhd,xkhd->bhqk", x, WEIGHTS), (6, 2, 8)
    ),
    "named lambda": siamese,
    "tensors and others": like_t5,
    "labels": with_labels,
    "no get_config": lambda: of_vectors(Blocks(8, 2)),
    "empty output": lambda: of_vectors(lambda x: layers.Dense(3)(Further((0,))(x)[0])),
    "constant output": lambda: of_vectors(lambda x: layers.Dense(3)(Further((1, 3))(x)[0])),
    "argmax": lambda: of_vectors(lambda x: ops.argmax(layers.Dense(4)(x), -1)),
    "zeros_like": lambda: of_vectors(lambda x: ops.softmax(ops.zeros_like(x) + x)),
    "size from free length": lambda: of_vectors(
        lambda x: layers.Conv2D(4, 3)(layers.UpSampling2D(2, interpolation="bilinear")(x)),
        (None, None, 3),
    ),
    "softmax of a product with a number": lambda: of_vectors(
        lambda x: ops.softmax(layers.Dense(6)(x) * 0.3)
    ),
    "logaddexp with zeros": lambda: of_vectors(
        lambda x: ops.logaddexp(layers.Dense(4)(x), ops.zeros_like(x[:, :, :4]))
    ),
    "product of constants": lambda: of_vectors(
        lambda x: layers.Dense(3)(layers.Concatenate()([ops.relu(x), ops.ones_like(x) * 2]))
    ),
    "causal and longer than its input": lambda: of_vectors(
        lambda x: layers.Conv1D(4, 2, padding="causal", dilation_rate=3)(x), (1, 6)
    ),
    "identity last": lambda: of_vectors(lambda x: layers.Identity()(layers.Dense(4)(x))),
    "elu": lambda: of_vectors(lambda x: layers.ELU()(layers.Dense(4)(x))),
    "hard_silu": lambda: of_vectors(lambda x: layers.Activation("hard_silu")(layers.Dense(4)(x))),
}


def data_of(model, rng):
    arrays = []
    for x in model.inputs:
        shape = (32, *(n or 8 for n in x.shape[1:]))
        ids = rng.integers(1, 5, shape) * (rng.uniform(size=shape) > 0.3)
        arrays.append(ids.astype(x.dtype) if "int" in x.dtype else rng.normal(size=shape))
    arrays = [a.astype("float32") if a.dtype.kind == "f" else a for a in arrays]
    return arrays if len(arrays) > 1 else arrays[0]


@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, "w8a8") for name in MODELS]
    + [(name, "w8a16") for name in ("elu", "hard_silu")]
    + [(name, "w8") for name in ("identity last", "two masked lstms", "multiply of masked")]
    + [("softmax of a product with a number", "w8")],
)
def test_a_model_that_stopped_is_written_and_computes_the_same(rng, name, scheme, tmp_path):
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    data = data_of(model, rng)
    q = tfq.quantize_model(model, scheme)
    if scheme != "w8":
        tfq.calibrate(q, data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", samples=data, progress=False)
    assert not report.lost_layers
    expected = np.asarray(model(data, training=False), np.float64)
    noise = np.sum((expected - np.asarray(q(data, training=False))) ** 2)
    if name != "argmax":  # Ties of an 8-bit grid are decided otherwise.
        assert 10 * np.log10(np.sum(expected**2) / max(noise, 1e-30)) > 28


def test_a_file_whose_last_layer_only_reshapes_has_its_output(rng, tmp_path):
    last = lambda x: layers.Flatten()(layers.UnitNormalization()(gap()(x)))  # noqa: E731
    model = of_vectors(lambda x: last(layers.Dense(1)(x)), (6, 1))
    data = rng.normal(size=(32, 6, 1)).astype("float32")
    tfq.to_tflite(tfq.quantize_model(model, "w8"), tmp_path / "m.tflite", progress=False)
    received = tfq.run(tmp_path / "m.tflite", data)
    np.testing.assert_allclose(received, model.predict(data, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("mean", "spread"),
    [(0, [1e-3, 1.0, 1e4, 1e-2]), (0, [0.02, 1e4, 1.0, 1.0]), ([1e4, 0, 0, 0], 1.0), (1013, 8.0)],
)
def test_columns_far_apart_are_normalized_in_front_of_the_first_grid(mean, spread, rng, tmp_path):
    table = (rng.normal(size=(64, 4)) * spread + mean).astype("float32")
    norm = layers.Normalization()
    norm.adapt(table)
    model = of_vectors(lambda x: layers.Dense(3)(norm(x)), (4,))
    q = tfq.quantize_model(model)
    tfq.calibrate(q, table, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert report.end_to_end.differing == 0 and not report.swallowed
    noise = np.sum((np.asarray(model(table)) - np.asarray(q(table))) ** 2)
    assert 10 * np.log10(np.sum(np.asarray(model(table)) ** 2) / noise) > 35


@pytest.mark.parametrize(
    "layer",
    [
        layers.Rescaling(1 / 127.5, offset=-1),
        layers.Rescaling(1.0, offset=-128.0),
        layers.Normalization(mean=[103.9, 116.8, 123.7], variance=[1.0, 1.0, 1.0]),
        layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.052, 0.050, 0.051]),
    ],
)
def test_images_are_scaled_in_integers(layer, rng, tmp_path):
    images = rng.integers(0, 255, (32, 6, 6, 3)).astype("float32")
    x = keras.Input((6, 6, 3))
    q = tfq.quantize_model(keras.Model(x, layers.Conv2D(3, 3)(layer(x))))
    tfq.calibrate(q, images, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert not report.float_operators and report.end_to_end.differing == 0


def test_an_input_that_stays_float_is_named_where_integers_are_asked_for(rng, tmp_path, caplog):
    table = (rng.normal(size=(64, 2)) * [0.02, 1e4]).astype("float32")
    x = keras.Input((2,), name="table")
    model = keras.Model(x, layers.Dense(3)(layers.Rescaling([50.0, 1e-4])(x)))
    q = tfq.calibrate(tfq.quantize_model(model), table, progress=False)
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert "stay float32" not in caplog.text
    tfq.to_tflite(q, tmp_path / "m.tflite", input_type="int8", progress=False)
    assert "Inputs stay float32, not int8" in caplog.text and "'table'" in caplog.text


def test_columns_that_a_rescaling_brings_together_are_scaled_in_float(rng, tmp_path):
    table = (rng.normal(size=(64, 2)) * [0.02, 1e4]).astype("float32")
    x = keras.Input((2,))
    model = keras.Model(x, layers.Dense(3)(layers.Rescaling([50.0, 1e-4])(x)))
    q = tfq.calibrate(tfq.quantize_model(model), table, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", progress=False)
    assert not report.swallowed
    noise = np.sum((np.asarray(model(table)) - np.asarray(q(table))) ** 2)
    assert 10 * np.log10(np.sum(np.asarray(model(table)) ** 2) / noise) > 35


class Unreadable(layers.Layer):
    """A product that runs on real tensors only, with arguments of both kinds."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")

    def call(self, x, shift=None, factor=None, negated=False):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("Real tensors only.")
        y = x @ self.kernel * (-1.0 if negated else 1.0)
        y = y if shift is None else y + shift
        return y if factor is None else y * factor

    def compute_output_spec(self, x, shift=None, factor=None, negated=False):
        return keras.KerasTensor((*x.shape[:-1], 4), x.dtype)


@pytest.mark.parametrize("settings", [{}, {"factor": None, "negated": True}, {"factor": 3.0}])
def test_a_call_takes_tensors_and_settings(settings, rng, tmp_path):
    x, shift = keras.Input((8,), name="x"), keras.Input((4,), name="shift")
    layer = Unreadable(name="own")
    y = layer(layers.Dense(8)(x), shift=shift, **settings)
    model = keras.Model([x, shift], layers.Dense(2)(layer(layers.Dense(8)(x), shift=y)))
    data = [rng.normal(size=(64, n)).astype("float32") for n in (8, 4)]
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    expected, received = (m.predict(data, verbose=0) for m in (model, q))
    np.testing.assert_allclose(received, expected, atol=0.05 * np.abs(expected).max())
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.end_to_end.largest <= 2
    path = tmp_path / "model.keras"
    q.save(path)
    with keras.saving.custom_object_scope({"Unreadable": Unreadable}):
        loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), received)


class PromisesMore(layers.Layer):
    """A product that promises a second output and returns none."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("Real tensors only.")
        return x @ self.kernel, None

    def compute_output_spec(self, x):
        return tuple(keras.KerasTensor((*x.shape[:-1], 4), x.dtype) for _ in range(2))


class Heads(layers.Layer):
    """Heads apart and joined again, by sizes that are read from a tensor of free length."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.before, self.behind = layers.Dense(8), layers.Dense(8)

    def build(self, shape):
        self.before.build(shape)
        self.behind.build((None, None, 8))

    def call(self, x):
        y = self.before(x)
        batch, steps = ops.shape(y)[:2]
        y = ops.reshape(y, (batch, steps, 2, 4))
        return self.behind(ops.reshape(ops.tanh(y), [batch, steps, -1]))

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("make", [lambda: PromisesMore(name="own"), lambda: Heads(name="own")])
def test_what_an_own_layer_does_not_tell_is_no_error(make, rng, tmp_path):
    x = keras.Input((None, 8))
    y = keras.tree.flatten(make()(layers.Dense(8)(x)))[0]
    model = keras.Model(x, layers.Dense(2)(y))
    data = rng.normal(size=(64, 5, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    expected, received = (m.predict(data, verbose=0) for m in (model, q))
    np.testing.assert_allclose(received, expected, atol=0.06 * np.abs(expected).max())
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.end_to_end.largest <= 2


@pytest.mark.parametrize("scheme", ["f16", "w8", "w8a8", "w8a8_dynamic"])
@pytest.mark.parametrize("skip", [(), ("Add",)])
@pytest.mark.parametrize("add", [ops.add, lambda a, b: layers.Add()([a, b])])
def test_a_sum_of_a_row_and_a_column_converts(add, skip, scheme, rng, tmp_path):
    x = keras.Input((6, 8))
    h = layers.Dense(8)(x)
    column, row = layers.Dense(1)(h), ops.transpose(layers.Dense(1)(h), (0, 2, 1))
    model = keras.Model(x, layers.Dense(3)(add(column, row)))
    data = rng.normal(size=(32, 6, 8)).astype("float32")
    q = tfq.quantize_model(model, scheme, skip=[layers.Add] if skip else ())
    if tfq.SCHEMES[scheme].static:
        tfq.calibrate(q, data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    assert report.end_to_end.largest <= (1 if report.end_to_end.in_steps else 1e-5)


class Trained(layers.Layer):
    """Says `training` to layers that do not ask."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.dense = layers.LayerNormalization(), layers.Dense(8)

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build(shape)

    def call(self, x, shift=None, training=None):
        y = self.dense(self.norm(x, training=training))
        return y if shift is None else y + shift


def test_training_is_said_to_layers_that_do_not_ask(rng, tmp_path):
    x, shift = keras.Input((4, 8)), keras.Input((4, 8))
    layer = Trained()
    model = keras.Model([x, shift], layers.Dense(2)(layer(x, shift=shift, training=False)))
    data = [rng.normal(size=(64, 4, 8)).astype("float32") for _ in range(2)]
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    expected, received = (m.predict(data, verbose=0) for m in (model, q))
    np.testing.assert_allclose(received, expected, atol=0.06 * np.abs(expected).max())
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.end_to_end.differing == 0
    assert all("norm" in operator.reason for operator in report.float_operators)


def split(x):
    batch, steps = ops.shape(x)[0], ops.shape(x)[1]
    y = ops.reshape(x, (batch, steps, 2, 4))
    return ops.reshape(ops.tanh(y), (batch, steps, -1))


def fold(x):
    return ops.reshape(ops.tanh(ops.reshape(x, (-1, 8))), (ops.shape(x)[0], -1, 8))


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("function", [split, fold])
def test_a_lambda_that_reshapes_by_sizes_it_reads_stops_nothing(function, steps, rng, tmp_path):
    x = keras.Input((steps, 8))
    y = layers.Lambda(function, output_shape=(steps, 8))(layers.Dense(8)(x))
    model = keras.Model(x, layers.Dense(2)(y))
    data = rng.normal(size=(32, 5, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    expected, received = (m.predict(data, verbose=0) for m in (model, q))
    np.testing.assert_allclose(received, expected, atol=0.06 * np.abs(expected).max())
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.end_to_end.differing == 0


class Angles(layers.Layer):
    """Returns numbers that depend on the shape of its input alone, without a batch."""

    def call(self, x):
        places = ops.reshape(ops.arange(x.shape[1], dtype="float32"), (-1, 1))
        return ops.sin(places * 0.3 + ops.reshape(ops.arange(8, dtype="float32"), (1, 8)))


def test_an_own_layer_may_return_a_constant_without_a_batch(rng, tmp_path):
    x = keras.Input((6, 8))
    y = layers.Dense(8)(x) * ops.expand_dims(Angles()(x), 0)
    model = keras.Model(x, layers.Dense(3)(y))
    data = rng.normal(size=(64, 6, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.end_to_end.differing == 0 and not report.float_operators


def test_windows_that_are_rows_are_compared(rng, tmp_path):
    x = keras.Input((16, 8))
    windows = ops.reshape(layers.Dense(8)(x), (-1, 4, 8))
    mixed = layers.Softmax()(ops.transpose(windows, (0, 2, 1)))
    mixed = ops.transpose(ops.tanh(mixed), (0, 2, 1)) + layers.Dense(8)(windows)
    model = keras.Model(x, layers.Dense(3)(ops.reshape(mixed, (-1, 16, 8))))
    data = rng.normal(size=(64, 16, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert report.not_compared == "" and report.end_to_end.differing == 0
    compared = {layer.name for layer in report.layers if layer.parity}
    assert {"softmax", "tanh"} <= {name.rstrip("_0123456789") for name in compared}


class HeadsBehindParts(layers.Layer):
    """Attention whose queries, keys and values are one tensor, heads a part of the rows.

    Li et al. 2021, arXiv:2112.01526, and Segment Anything compute it so: `(3, batch * heads, ...)`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.qkv, self.behind = layers.Dense(3 * 8), layers.Dense(8)

    def build(self, shape):
        self.qkv.build(shape)
        self.behind.build((*shape[:-1], 8))

    def call(self, x):
        batch, steps, _ = ops.shape(x)
        parts = ops.transpose(ops.reshape(self.qkv(x), (batch, steps, 3, 2, 4)), (2, 0, 3, 1, 4))
        parts = ops.reshape(parts, (3, batch * 2, steps, 4))
        queries, keys, values = ops.unstack(parts, axis=0)
        scores = ops.softmax((queries * 0.5) @ ops.transpose(keys, (0, 2, 1)))
        y = ops.transpose(ops.reshape(scores @ values, (batch, 2, steps, 4)), (0, 2, 1, 3))
        return self.behind(ops.reshape(y, (batch, steps, 8)))

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_rows_that_are_counted_on_another_axis_are_compared(batch_size, rng, tmp_path):
    x = keras.Input((6, 8))
    model = keras.Model(x, layers.Dense(2)(HeadsBehindParts()(x)))
    data = rng.normal(size=(64, 6, 8)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "m.tflite", batch_size=batch_size, progress=False)
    assert not report.float_operators and report.not_compared == ""
    assert report.end_to_end.differing == 0
    compared = [layer for layer in report.layers if layer.parity is not None]
    assert not any(layer.parity.differing for layer in compared)
    # Of several rows at once those on another axis are not told apart.
    assert any("unstack" in layer.name for layer in compared) == (batch_size != 4)
