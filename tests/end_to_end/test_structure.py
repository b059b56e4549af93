"""Models of any structure: nested, shared, of several ends, of free shapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq
from tfquant.litert.flatbuffer import File

FEATURES = 6


def dense(units=FEATURES, **kwargs):
    return layers.Dense(units, bias_initializer="random_normal", **kwargs)


def nested(depth):
    """A model in a model in a model, each with a layer of its own before and behind."""
    x = keras.Input((FEATURES,))
    y = dense(activation="relu")(x)
    if depth:
        y = nested(depth - 1)(y)
    return keras.Model(x, layers.Add()([dense()(y), x]))


def deep():
    return nested(4)


def chain_without_activations():
    x = keras.Input((FEATURES,))
    y = dense()(dense()(x))
    return keras.Model(x, dense(3)(layers.Add()([y, dense()(y)])))


def dicts():
    a, b = keras.Input((FEATURES,), name="a"), keras.Input((4,), name="b")
    inner_a, inner_b = keras.Input((FEATURES,), name="x"), keras.Input((4,), name="y")
    inner = keras.Model(
        {"x": inner_a, "y": inner_b}, {"sum": dense(4)(inner_a) + inner_b, "same": inner_b}
    )
    found = inner({"x": a, "y": b})
    return keras.Model(
        {"a": a, "b": b}, {"one": dense(2)(found["sum"]), "two": [dense(3)(found["same"]), b]}
    )


def shared_at_two_sizes():
    a, b = keras.Input((FEATURES,), name="a"), keras.Input((FEATURES,), name="b")
    tower = keras.Sequential([keras.Input((FEATURES,)), dense(activation="relu"), dense(4)])
    return keras.Model([a, b], layers.Concatenate()([tower(a), tower(b * 100.0)]))


def preprocessed():
    x = keras.Input((8, 8, 3))
    y = layers.Rescaling(1 / 127.5, offset=-1.0)(layers.Resizing(4, 4)(x))
    y = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(y)
    return keras.Model(x, dense(3)(layers.Flatten()(layers.Conv2D(4, 3)(y))))


def channels_first():
    x = keras.Input((3, 8, 8))
    conv = lambda filters: layers.Conv2D(  # noqa: E731
        filters, 3, padding="same", data_format="channels_first"
    )
    y = layers.BatchNormalization(axis=1)(conv(4)(x))
    y = layers.MaxPooling2D(2, data_format="channels_first")(layers.ReLU()(y))
    y = layers.GlobalAveragePooling2D(data_format="channels_first")(conv(4)(y))
    return keras.Model(x, dense(3)(y))


def volumes():
    x = keras.Input((4, 4, 4, 2))
    y = layers.MaxPooling3D(2)(layers.BatchNormalization()(dense(4)(x)))
    return keras.Model(x, dense(3)(layers.GlobalAveragePooling3D()(y)))


MODELS = (
    chain_without_activations,
    channels_first,
    deep,
    dicts,
    preprocessed,
    shared_at_two_sizes,
    volumes,
)


def data_for(model, rng, count=32):
    return [rng.normal(size=(count, *x.shape[1:])).astype(np.float32) for x in model.inputs]


def packed(model, arrays):
    return keras.tree.pack_sequence_as(model.input, arrays)


def converted(model, arrays, path, **kwargs):
    q = tfq.quantize_model(model)
    tfq.calibrate(q, arrays, observer="min_max", progress=False)
    return q, tfq.to_tflite(q, path / "model.tflite", progress=False, **kwargs)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_a_model_of_any_structure_becomes_an_integer_file(make, rng, tmp_path):
    model = make()
    arrays = data_for(model, rng)
    q, report = converted(model, arrays, tmp_path)
    assert not report.float_operators
    assert report.end_to_end.largest <= (3 if make is preprocessed else 1)
    assert report.end_to_end.share_differing <= (0.5 if make is preprocessed else 0.01)
    if make is channels_first:
        return  # Keras itself runs its convolutions on GPUs only.
    keras.tree.assert_same_structure(q(packed(q, arrays)), model(packed(model, arrays)))
    pairs = zip(*(keras.tree.flatten(m(packed(m, arrays))) for m in (q, model)), strict=True)
    for received, expected in pairs:
        expected = np.asarray(expected)
        np.testing.assert_allclose(received, expected, atol=0.06 * np.abs(expected).max())


def test_a_shared_layer_has_its_weights_once_and_a_range_for_each_call(rng, tmp_path):
    model = shared_at_two_sizes()
    q, _ = converted(model, data_for(model, rng), tmp_path)
    kernels = [v for v in q.trainable_variables if v.path.endswith("kernel")]
    assert len(kernels) == 2
    first = next(x for x in q.layers if getattr(getattr(x, "layer", 0), "units", 0) == 6)
    small, large = (float(q[0].params().scale) for q in first.output_quantizers)
    assert large > 20 * small
    file = File((tmp_path / "model.tflite").read_bytes())
    stored = [op.inputs[1] for op in file.ops if op.name == "FULLY_CONNECTED"]
    buffers = {file.subgraph.tensors[i].buffer for i in stored}
    assert len(stored) == 4 and len(buffers) == 2


def test_free_image_sizes_stay_free(rng, tmp_path):
    x = keras.Input((None, None, 3))
    y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(y))
    model = keras.Model(x, dense(3)(y))
    sizes = [rng.normal(size=(4, n, n + 2, 3)).astype(np.float32) for n in (8, 12)]
    q = tfq.quantize_model(model)
    tfq.calibrate(q, iter([sizes[0]]), observer="min_max", progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=sizes[1], progress=False)
    assert not report.float_operators
    assert report.end_to_end.differing == 0


def test_batches_of_any_size_calibrate_alike(rng):
    x = keras.Input((FEATURES,))
    model = keras.Model(x, dense(3)(dense(activation="relu")(x)))
    (data,) = data_for(model, rng, 31)
    ragged = [data[:1], data[1:6], data[6:30], data[30:]]
    grids = []
    for batches in ([data], ragged):
        q = tfq.quantize_model(model)
        tfq.calibrate(q, iter(batches), observer="min_max", bias_correction=False, progress=False)
        wrappers = [x for x in q.layers if isinstance(x, tfq.QuantizeWrapper)]
        grids.append([float(w.output_quantizers[0][0].params().scale) for w in wrappers])
    np.testing.assert_allclose(*grids, rtol=1e-6)


def test_what_stays_float_leaves_the_layers_around_it_in_integers(rng, tmp_path):
    x = keras.Input((FEATURES,))
    y = layers.Lambda(lambda x: tf.math.sin(x), output_shape=(FEATURES,), name="wave")(dense()(x))
    model = keras.Model(x, dense(3)(y))
    _, report = converted(model, data_for(model, rng), tmp_path)
    assert {op.reason for op in report.float_operators} == {
        "layer 'wave' (Lambda) is not quantized"
    }
    dense_layers = [x for x in report.layers if x.operator == "FULLY_CONNECTED"]
    assert [x.activation_bits for x in dense_layers] == [8, 8]


def test_a_lookup_of_strings_runs_before_the_file(rng, tmp_path):
    words, numbers = keras.Input((2,), dtype="string", name="words"), keras.Input((4,), name="n")
    y = layers.Embedding(9, 4)(layers.StringLookup(vocabulary=["a", "b"], name="lookup")(words))
    y = layers.Concatenate()([layers.Flatten()(y), dense(4)(numbers)])
    model = keras.Model([words, numbers], dense(3)(y))
    data = [np.array([["a", "b"], ["c", "a"]] * 8), rng.normal(size=(16, 4)).astype(np.float32)]
    _, report = converted(model, data, tmp_path)
    assert report.front_layers == {"lookup": "StringLookup"}
    assert "run before it: 'lookup' (StringLookup)" in str(report)
    assert not report.float_operators
    assert report.end_to_end.differing == 0
    file = File((tmp_path / "model.tflite").read_bytes())
    assert sorted(file.shape(i) for i in file.inputs) == [(1, 2), (1, 4)]


class Cell(layers.Layer):
    """A recurrent cell of one's own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))
        self.recurrent = self.add_weight(shape=(self.units, self.units))
        self.built = True

    def call(self, x, states):
        h = tf.tanh(ops.matmul(x, self.kernel) + ops.matmul(states[0], self.recurrent))
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_a_cell_that_cannot_be_read_has_its_weights_in_integers(rng, tmp_path):
    x = keras.Input((4, 3))
    model = keras.Model(x, dense(2)(layers.RNN(Cell(5), name="own")(x)))
    arrays = data_for(model, rng)
    q, report = converted(model, arrays, tmp_path)
    (wrapper,) = [w for w in q.layers if getattr(getattr(w, "layer", 0), "name", 0) == "own"]
    assert [quantizer.spec.num_bits for _, quantizer in wrapper.weight_quantizers] == [8, 8]
    assert any("'own' (RNN)" in op.reason for op in report.float_operators)
    assert report.end_to_end.largest <= 1


@pytest.mark.parametrize("first", ["relu", "relu6"])
@pytest.mark.parametrize("second", ["relu", "relu6"])
def test_a_clamp_of_what_is_clamped_has_no_grid_of_its_own(first, second, rng, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = layers.Activation(first)(layers.Conv2D(8, 3, padding="same")(x))
    z = layers.DepthwiseConv2D(3, padding="same")(layers.Activation(second)(y))
    model = keras.Model(x, layers.Add()([layers.Conv2D(8, 1)(z), layers.Conv2D(8, 1)(y)]))
    data = 6 * rng.normal(size=(32, 8, 8, 3)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", progress=False)
    assert not report.lost_layers and not report.float_operators
    assert report.end_to_end.differing == 0
    expected, received = (m.predict(data, verbose=0) for m in (model, q))
    np.testing.assert_allclose(received, expected, atol=0.1 * np.abs(expected).max())
