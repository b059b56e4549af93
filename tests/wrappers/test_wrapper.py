"""A wrapper computes what the plain layer computes with weights that were rounded beforehand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from small import filled

import tfquant as tfq
from tfquant import PerAxis, QuantSpec
from tfquant.numerics import QuantParams
from tfquant.quantizers import AbsMax, Static, grid_of
from tfquant.registry import KERAS_LAYERS, SCHEMES
from tfquant.wrappers import CallSite, Quantize

INT8 = QuantSpec(8)


@keras.saving.register_keras_serializable(package="tfquant_tests")
class MatricesConfig(tfq.QuantizeConfig):
    """8 bits for each trained matrix, one scale for each index of its last axis."""

    def __init__(self, outputs=1, axis=-1):
        self.outputs = outputs
        self.axis = axis

    def get_weights_and_quantizers(self, layer):
        spec = QuantSpec(8, symmetric=True, narrow_range=True, granularity=PerAxis(self.axis))
        return [(v, AbsMax(spec)) for v in layer.trainable_variables if len(v.shape) > 1]

    def get_output_quantizers(self, layer):
        return [Static(INT8) for _ in range(self.outputs)]

    def get_config(self):
        return {"outputs": self.outputs, "axis": self.axis}


def rounded(w, shared, top=127):
    """`w` on the symmetric grid of its largest magnitude over the axes `shared`."""
    step = np.abs(w).max(axis=shared, keepdims=True).astype(np.float32) * np.float32(1 / top)
    return (np.rint(w / step) * step).astype(np.float32)


def all_but_last(w):
    return tuple(range(w.ndim - 1))


# A layer, the shape of its input, and the axes of its kernel that share a scale.
LINEAR = {
    "Dense": (lambda: layers.Dense(5), (7,), (0,)),
    "Dense of rank 3": (lambda: layers.Dense(5), (4, 7), (0,)),
    "Dense with activation": (lambda: layers.Dense(5, activation="tanh"), (7,), (0,)),
    "Dense without bias": (lambda: layers.Dense(5, use_bias=False), (7,), (0,)),
    "Conv1D": (lambda: layers.Conv1D(5, 3, padding="causal"), (8, 3), (0, 1)),
    "Conv2D": (lambda: layers.Conv2D(5, 3, strides=2, padding="same"), (7, 7, 3), (0, 1, 2)),
    "Conv2D of groups": (lambda: layers.Conv2D(4, 3, groups=2), (7, 7, 6), (0, 1, 2)),
    "DepthwiseConv1D": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), (8, 3), (0,)),
    "DepthwiseConv2D": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        (7, 7, 3),
        (0, 1),
    ),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(5, 3, strides=2), (8, 3), (0, 2)),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(5, 3, strides=2), (5, 5, 3), (0, 1, 3)),
}

# Layers without a row in the registry, with a config of the test.
OTHER = {
    "EinsumDense": (lambda: layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d"), (4, 7)),
    "LSTM": (lambda: layers.LSTM(5), (4, 7)),
    "GRU": (lambda: layers.GRU(5, return_sequences=True), (4, 7)),
    "SimpleRNN": (lambda: layers.SimpleRNN(5), (4, 7)),
    "Bidirectional": (lambda: layers.Bidirectional(layers.LSTM(3)), (4, 7)),
    "Conv3D": (lambda: layers.Conv3D(4, 2), (4, 4, 4, 2)),
}


def built(make, shape, rng):
    layer = make()
    layer(np.zeros((1, *shape), np.float32))
    filled(layer, rng)
    return layer


def twin(make, shape, layer, shared_of):
    """A plain layer of the same settings, given matrices that are rounded already."""
    plain = make()
    plain(np.zeros((1, *shape), np.float32))
    plain.set_weights([rounded(w, shared_of(w)) if w.ndim > 1 else w for w in layer.get_weights()])
    return plain


def batch(rng, shape):
    return rng.normal(size=(3, *shape)).astype(np.float32)


def linear(name, rng, scheme="w8", **kwargs):
    make, shape, shared = LINEAR[name]
    layer = built(make, shape, rng)
    config = KERAS_LAYERS.get_quantize_config(layer, SCHEMES[scheme])
    plain = twin(make, shape, layer, lambda w: shared)
    return tfq.QuantizeWrapper(layer, config, **kwargs), plain, batch(rng, shape)


def passing(wrapper):
    """Lets outputs through unrounded, as a float warm-up does: training asks for ranges else."""
    for quantizers in wrapper.output_quantizers:
        for quantizer in quantizers:
            quantizer.active = False
    return wrapper


def assert_same(got, expected):
    # The same operations on the same numbers, save for one unit in the last place of a scale.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scheme", ["w8", "w8a8"])
@pytest.mark.parametrize("name", LINEAR)
def test_a_layer_computes_with_rounded_weights(name, scheme, training, rng):
    wrapper, plain, x = linear(name, rng, scheme)
    assert_same(passing(wrapper)(x, training=training), plain(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", OTHER)
def test_a_layer_of_an_own_config_computes_with_rounded_weights(name, training, rng):
    make, shape = OTHER[name]
    layer = built(make, shape, rng)
    plain, x = twin(make, shape, layer, all_but_last), batch(rng, shape)
    wrapper = passing(tfq.QuantizeWrapper(layer, MatricesConfig()))
    assert_same(wrapper(x, training=training), plain(x))


def test_an_embedding_looks_up_rounded_rows(rng):
    layer = layers.Embedding(10, 4)
    layer.build((None, 3))
    filled(layer, rng)
    tokens = rng.integers(0, 10, (5, 3))
    expected = rounded(layer.get_weights()[0], 1)[tokens]
    assert_same(tfq.QuantizeWrapper(layer, MatricesConfig(axis=0))(tokens), expected)


def attention(rng):
    make = lambda: layers.MultiHeadAttention(2, 3, dropout=0.0)  # noqa: E731
    x, y = batch(rng, (4, 6)), batch(rng, (5, 6))
    layer, plain = make(), make()
    for new in (layer, plain):
        new(x, y)
    filled(layer, rng)
    return layer, plain, x, y


def test_attention_takes_two_inputs_and_keywords(rng):
    layer, plain, x, y = attention(rng)
    plain.set_weights(
        [
            rounded(w, all_but_last(w)) if v.path.endswith("kernel") else w
            for w, v in zip(layer.get_weights(), layer.weights, strict=True)
        ]
    )

    class Kernels(MatricesConfig):
        def get_weights_and_quantizers(self, layer):
            pairs = super().get_weights_and_quantizers(layer)
            return [(v, q) for v, q in pairs if v.path.endswith("kernel")]

    mask = rng.integers(0, 2, (3, 4, 5)).astype(bool)
    mask[:, :, 0] = True
    wrapper = tfq.QuantizeWrapper(layer, Kernels())
    assert_same(wrapper(x, value=y, attention_mask=mask), plain(x, y, attention_mask=mask))
    two = tfq.QuantizeWrapper(layer, Kernels(outputs=2))
    got = two(x, y, return_attention_scores=True)
    for a, b in zip(got, plain(x, y, return_attention_scores=True), strict=True):
        assert_same(a, b)


def test_training_without_ranges_names_the_layer(rng):
    wrapper, _, x = linear("Dense", rng, "w8a8")
    with pytest.raises(ValueError, match=rf"range of '{wrapper.layer.name}' was never set"):
        wrapper(x, training=True)


class TestGradients:
    @pytest.mark.parametrize("name", ["Dense", "Conv2D", "DepthwiseConv2D", "Conv2DTranspose"])
    def test_they_are_those_at_the_rounded_weights(self, name, rng):
        wrapper, plain, x = linear(name, rng)
        upstream = rng.normal(size=plain(x).shape).astype(np.float32)

        def gradients(layer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x, training=True) * upstream)
            values = [v.value for v in layer.trainable_variables]
            return tape.gradient(loss, values)

        for got, expected in zip(gradients(wrapper), gradients(plain), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)

    def test_training_moves_the_float_weights_and_not_the_quantizers(self, rng):
        wrapper, _, x = linear("Dense", rng, "w8a8")
        wrapper.output_quantizers[0][0].set_params(tfq.QuantParams(0.05, 0))
        model = keras.Sequential([keras.Input(x.shape[1:]), wrapper])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        before = {v.path: v.numpy() for v in model.variables}
        model.fit(x, np.ones((3, 5), np.float32), epochs=2, verbose=0)
        moved = [v.path for v in model.layers[0].variables if (v.numpy() != before[v.path]).any()]
        assert sorted(moved) == sorted(v.path for v in wrapper.layer.trainable_variables)

    def test_a_frozen_layer_stays_frozen(self, rng):
        make, shape, _ = LINEAR["Dense"]
        layer = built(make, shape, rng)
        layer.trainable = False
        wrapper = tfq.QuantizeWrapper(
            layer, KERAS_LAYERS.get_quantize_config(layer, SCHEMES["w8a8"])
        )
        assert not wrapper.trainable_variables

    def test_the_float_weights_are_unchanged_by_a_call(self, rng):
        wrapper, _, x = linear("Dense", rng)
        before = wrapper.layer.get_weights()
        wrapper(x)
        for w, old in zip(wrapper.layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(w, old)


class TestState:
    def test_training_moves_the_statistics_of_a_batch_norm_behind(self, rng):
        make, shape, shared = LINEAR["Conv2D"]
        norm = layers.BatchNormalization(momentum=0.9)
        norm.build((None, None, None, 5))
        layer = built(make, shape, rng)
        config = KERAS_LAYERS.get_quantize_config(layer, SCHEMES["w8a8"])
        wrapper = passing(tfq.QuantizeWrapper(layer, config, batch_norm=norm))
        x = batch(rng, shape)
        y = np.asarray(twin(make, shape, layer, lambda w: shared)(x))
        wrapper(x, training=True)
        mean, variance = y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))
        np.testing.assert_allclose(norm.moving_mean, 0.1 * mean, atol=1e-5)
        np.testing.assert_allclose(norm.moving_variance, 0.9 + 0.1 * variance, atol=1e-5)
        before = norm.get_weights()
        wrapper(x, training=False)
        for w, old in zip(norm.get_weights(), before, strict=True):
            np.testing.assert_array_equal(w, old)

    def test_training_moves_the_state_of_the_wrapped_layer(self, rng):
        layer = Normalized()
        layer(np.zeros((1, 6), np.float32))
        x = batch(rng, (6,)) + 3
        wrapper = passing(tfq.QuantizeWrapper(layer, MatricesConfig()))
        wrapper(x, training=True)
        y = x @ rounded(layer.dense.kernel.numpy(), 0)
        np.testing.assert_allclose(layer.norm.moving_mean, 0.01 * y.mean(axis=0), atol=1e-5)

    @pytest.mark.parametrize("where", ["kernel_regularizer", "activity_regularizer"])
    def test_losses_of_regularizers_survive(self, where, rng):
        layer = layers.Dense(5, **{where: keras.regularizers.L2(0.3)})
        x = batch(rng, (7,))
        layer(x)
        config = KERAS_LAYERS.get_quantize_config(layer, SCHEMES["w8"])
        model = keras.Sequential([keras.Input((7,)), tfq.QuantizeWrapper(layer, config)])
        y = np.asarray(model(x, training=True))
        if where == "kernel_regularizer":
            kernel = layer.kernel.numpy()
            # Of the float or the rounded kernel: both are half a percent apart.
            expected = 0.3 * (kernel**2).sum()
        else:
            expected = 0.3 * (y**2).sum() / len(x)
        assert float(sum(model.losses)) == pytest.approx(expected, rel=0.01)

    def test_a_seed_moves_on(self, rng):
        layer = DropoutDense()
        x = np.ones((4, 6), np.float32)
        layer(x)
        wrapper = passing(tfq.QuantizeWrapper(layer, MatricesConfig()))
        first, second = (np.asarray(wrapper(x, training=True)) for _ in range(2))
        assert (first != second).any()


@keras.saving.register_keras_serializable(package="tfquant_tests")
class Normalized(layers.Layer):
    def build(self, shape):
        self.dense = layers.Dense(4, use_bias=False)
        self.dense.build(shape)
        self.norm = layers.BatchNormalization()
        self.norm.build((None, 4))

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


@keras.saving.register_keras_serializable(package="tfquant_tests")
class DropoutDense(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")
        self.dropout = layers.Dropout(0.5)

    def call(self, x, training=None):
        return self.dropout(x @ self.kernel, training=training)


@keras.saving.register_keras_serializable(package="tfquant_tests")
class Mode(layers.Layer):
    """Multiplies by 2 in training and by 3 elsewhere."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(1, 1), initializer="ones", name="factor")

    def call(self, x, training=None):
        return x * self.factor * (2.0 if training else 3.0)


@keras.saving.register_keras_serializable(package="tfquant_tests")
class Pair(layers.Layer):
    """Two inputs, a keyword, two outputs in a dict."""

    def build(self, *shapes):
        self.kernel = self.add_weight(shape=(4, 4), name="kernel")

    def call(self, first, second, factor=1.0):
        return {"sum": (first + second) @ self.kernel * factor, "difference": first - second}


@pytest.mark.parametrize("training", [None, False, True])
def test_training_reaches_the_layer(training):
    layer = Mode()
    x = np.ones((2, 3), np.float32)
    layer(x)
    y = passing(tfq.QuantizeWrapper(layer, MatricesConfig()))(x, training=training)
    np.testing.assert_allclose(y, x * (2 if training else 3), rtol=1e-6)


def test_several_inputs_keywords_and_outputs_keep_their_structure(rng):
    layer, x, y = Pair(), batch(rng, (4,)), batch(rng, (4,))
    layer(x, y)
    wrapper = tfq.QuantizeWrapper(layer, MatricesConfig(outputs=2))
    got = wrapper(x, y, factor=2.0)
    assert_same(got["sum"], (x + y) @ rounded(layer.kernel.numpy(), 0) * 2)
    np.testing.assert_array_equal(got["difference"], x - y)
    assert_same(wrapper(x, second=y)["sum"], (x + y) @ rounded(layer.kernel.numpy(), 0))


def test_each_output_has_its_own_grid(rng):
    layer, x, y = Pair(), batch(rng, (4,)), batch(rng, (4,))
    layer(x, y)
    wrapper = tfq.QuantizeWrapper(layer, MatricesConfig(outputs=2))
    for quantizer, scale in zip(wrapper.output_quantizers[0], (0.25, 0.5), strict=True):
        quantizer.set_params(tfq.QuantParams(scale, 0))
    got = wrapper(x, y)
    # A dict is flattened in the order of its sorted keys.
    np.testing.assert_array_equal(got["difference"], np.rint((x - y) * 4) / 4)
    assert float(grid_of(got["sum"]).params.scale) == 0.5


@pytest.mark.parametrize(
    "scheme", ["w8", "w8a8", "w4a8", "w8a16", "w8a8_dynamic", "w4a8_g32", "f16"]
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_computes_what_eager_execution_does(scheme, jit_compile, rng):
    wrapper, _, x = linear("Dense", rng, scheme)
    params = tfq.QuantParams(np.float32(0.05), 0)
    point = None
    if SCHEMES[scheme].static:
        point = Quantize(Static(SCHEMES[scheme].activations))
        point.quantizer.set_params(params)
        wrapper.output_quantizers[0][0].set_params(params)
    call = lambda x: wrapper(point(x) if point else x) * 1.0  # noqa: E731
    got = tf.function(call, jit_compile=jit_compile)(tf.constant(x)).numpy()
    # Grids make integers of it; without them the order of a sum is free.
    tolerance = 0 if point else 1e-5
    np.testing.assert_allclose(got, call(ops.array(x)).numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("scheme", ["w8", "w8a8"])
def test_a_compiled_training_step_runs(scheme, rng):
    wrapper, _, x = linear("Dense", rng, scheme)
    for quantizer in wrapper.output_quantizers[0]:
        quantizer.set_params(tfq.QuantParams(0.05, 0))
    model = keras.Sequential([keras.Input(x.shape[1:]), wrapper])
    model.compile("adam", "mse", jit_compile=True)
    model.fit(x, np.zeros(model(x).shape, np.float32), verbose=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_mixed_precision_computes_in_the_layers_dtype(policy, training, rng):
    layer = layers.Dense(5, dtype=policy)
    x = batch(rng, (7,))
    layer(x)
    filled(layer, rng)
    config = KERAS_LAYERS.get_quantize_config(layer, SCHEMES["w8a8"])
    wrapper = passing(tfq.QuantizeWrapper(layer, config))
    y = wrapper(x, training=training)
    assert y.dtype == layer.compute_dtype
    kernel = np.asarray(ops.cast(layer.kernel, "float32"))
    expected = x @ rounded(kernel, 0) + np.asarray(ops.cast(layer.bias, "float32"))
    # Eight bits of significand in a sum of seven products.
    np.testing.assert_allclose(np.asarray(ops.cast(y, "float32")), expected, atol=0.05)


def test_a_wrapper_of_mixed_precision_rounds_to_its_grid(rng):
    layer = layers.Dense(5, dtype="mixed_bfloat16")
    x = batch(rng, (7,))
    layer(x)
    wrapper = tfq.QuantizeWrapper(layer, KERAS_LAYERS.get_quantize_config(layer, SCHEMES["w8a8"]))
    wrapper.output_quantizers[0][0].set_params(tfq.QuantParams(0.25, 3))
    y = np.asarray(ops.cast(wrapper(x), "float32"))
    np.testing.assert_array_equal(y, np.rint(y * 4) / 4)


class TestSaving:
    @pytest.mark.parametrize("name", ["Dense", "Conv2D", "DepthwiseConv1D", "Conv2DTranspose"])
    def test_a_saved_wrapper_computes_the_same(self, name, rng, tmp_path):
        sites = [CallSite((0.0, 6.0), "branches")]
        wrapper, _, x = linear(name, rng, "w4a8", call_sites=sites)
        wrapper.output_quantizers[0][0].set_params(tfq.QuantParams(0.03, -7))
        ((_, quantizer),) = wrapper.weight_quantizers
        quantizer.clip.assign(np.full(quantizer.scale_shape, 0.8))
        model = keras.Sequential([keras.Input(x.shape[1:]), wrapper])
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded(x), model(x))
        assert loaded.layers[0].call_sites == (CallSite((0.0, 6.0), "branches"),)
        assert loaded.layers[0].output_quantizers[0][0].group == "branches"

    @pytest.mark.parametrize("name", ["LSTM", "Bidirectional", "EinsumDense"])
    def test_a_layer_of_several_variables_is_saved(self, name, rng, tmp_path):
        make, shape = OTHER[name]
        wrapper = tfq.QuantizeWrapper(built(make, shape, rng), MatricesConfig())
        model, x = keras.Sequential([keras.Input(shape), wrapper]), batch(rng, shape)
        model.save(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            keras.models.load_model(tmp_path / "model.keras")(x), model(x)
        )

    def test_a_folded_batch_norm_is_saved(self, rng, tmp_path):
        norm = layers.BatchNormalization()
        norm.build((None, 5))
        filled(norm, rng)
        norm.moving_variance.assign(rng.uniform(0.5, 2, 5))
        wrapper, _, x = linear("Dense", rng, "w8a8", batch_norm=norm)
        wrapper.output_quantizers[0][0].set_params(tfq.QuantParams(0.05, 0))
        model = keras.Sequential([keras.Input((7,)), wrapper])
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for training in (False, True):
            np.testing.assert_array_equal(loaded(x, training=training), model(x, training=training))

    def test_weights_of_a_file_bring_the_grids(self, rng, tmp_path):
        make = lambda: keras.Sequential(  # noqa: E731
            [keras.Input((7,)), linear("Dense", rng, "w8a8")[0]]
        )
        model, other, x = make(), make(), batch(rng, (7,))
        model.layers[0].output_quantizers[0][0].set_params(tfq.QuantParams(0.03, -7))
        model.save_weights(tmp_path / "all.weights.h5")
        other.load_weights(tmp_path / "all.weights.h5")
        np.testing.assert_array_equal(other(x), model(x))


class TestErrors:
    def test_an_unbuilt_layer_is_refused(self):
        with pytest.raises(ValueError, match=r"expects a built layer\. Received: 'early'"):
            tfq.QuantizeWrapper(layers.Dense(2, name="early"), MatricesConfig())

    @pytest.mark.parametrize("count", [2, 3])
    def test_another_number_of_outputs_is_refused(self, count, rng):
        layer = built(lambda: layers.Dense(5, name="head"), (7,), rng)
        wrapper = tfq.QuantizeWrapper(layer, MatricesConfig(outputs=count))
        with pytest.raises(ValueError, match=rf"of 'head'.*Expected: 1\. Received: {count}"):
            wrapper(batch(rng, (7,)))

    def test_a_config_without_its_methods_cannot_be_made(self):
        with pytest.raises(TypeError, match="abstract"):
            tfq.QuantizeConfig()


class TestCallSites:
    def test_each_call_has_its_own_grid_and_clamp(self, rng):
        sites = [CallSite(), CallSite((0.0, None)), CallSite((0.0, 6.0))]
        wrapper, plain, x = linear("Dense", rng, "w8a8", call_sites=sites)
        x = x * 10
        for index, scale in enumerate((0.25, 0.5, 1.0)):
            wrapper.output_quantizers[index][0].set_params(tfq.QuantParams(scale, 0))
        y = np.asarray(plain(x))
        for index, (low, high, scale) in enumerate(
            [(-np.inf, np.inf, 0.25), (0, np.inf, 0.5), (0, 6, 1.0)]
        ):
            expected = np.clip(np.rint(np.clip(y, low, high) / scale), -128, 127) * scale
            np.testing.assert_array_equal(wrapper(x, call_site=index), expected)

    def test_calls_share_the_weights(self, rng):
        wrapper, *_ = linear("Dense", rng, call_sites=[CallSite(), CallSite()])
        assert len(wrapper.trainable_variables) == 2

    def test_a_clamp_read_from_a_file_equals_the_one_written(self):
        assert CallSite([0.0, None]) == CallSite((0.0, None))

    @pytest.mark.parametrize("clamp", [(0.0, None), (0.0, 6.0), (-1.0, 1.0), (None, 2.0)])
    @pytest.mark.parametrize("training", [False, True])
    def test_a_clamp_bounds_the_output(self, clamp, training, rng):
        wrapper, plain, x = linear("Dense", rng, call_sites=[CallSite(clamp)])
        low, high = (-np.inf if clamp[0] is None else clamp[0]), clamp[1] or np.inf
        got = wrapper(x * 5, training=training)
        assert_same(got, np.clip(plain(x * 5), low, high))


def test_a_quantization_point_rounds(rng):
    point = Quantize(Static(INT8))
    x = batch(rng, (4,))
    np.testing.assert_array_equal(point(x), x)
    point.quantizer.set_params(tfq.QuantParams(0.25, 0))
    np.testing.assert_array_equal(point(x), np.rint(x * 4) / 4)
    assert point.compute_output_shape((None, 4)) == (None, 4)


def trained_once(clamp, grid, skips, rng):
    """Returns the output, the gradient to the input and the range after a step of training."""
    layer = built(lambda: layers.Dense(64), (7,), rng)
    config = KERAS_LAYERS.get_quantize_config(layer, SCHEMES["w8a8"])
    sites = (CallSite(clamp),)
    wrapper = tfq.QuantizeWrapper(
        layer, config, call_sites=sites, activation_quantizer="moving_average"
    )
    ((quantizer,),) = wrapper.output_quantizers
    quantizer.set_params(grid)
    assert quantizer.clamps == skips
    x = tf.Variable(batch(rng, (7,)) * 5)
    with tf.GradientTape() as tape:
        y = wrapper(x, training=True)
        loss = ops.sum(y * rng.normal(size=y.shape).astype(np.float32))
    return y, tape.gradient(loss, x), quantizer.bounds


@pytest.mark.parametrize("clamp", [(0, None), (0, 6)])
def test_a_grid_that_ends_with_the_activation_takes_its_place(clamp):
    ends_there, reaches_below = QuantParams(5 / 255, -128), QuantParams(5 / 254, -127)
    found, expected = (
        trained_once(clamp, grid, skips, np.random.default_rng(0))
        for grid, skips in ((ends_there, True), (reaches_below, False))
    )
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=0.05)
    assert np.min(found[0]) == 0 and np.max(found[0]) <= (clamp[1] or 100)


def test_without_an_activation_nothing_is_clamped_twice(rng):
    trained_once(None, QuantParams(5 / 255, -128), False, rng)
