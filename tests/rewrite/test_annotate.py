"""Choosing layers: by mark, by name, by type, by object, with a config of one's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfquant as tfq
from tfquant import QuantSpec

ANNOTATE = (
    tfq.quantize_model,
    lambda model, **kwargs: tfq.quantize_apply(tfq.quantize_annotate_model(model, **kwargs)),
)


@keras.saving.register_keras_serializable(package="tfquant_tests")
class ThreeBits(tfq.QuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, tfq.quantizers.AbsMax(QuantSpec(3, symmetric=True)))]

    def get_output_quantizers(self, layer):
        return [tfq.quantizers.Static(QuantSpec(8))]


def own_clip(model):
    """What was found best to clip the weight of the layer with `ThreeBits` to."""
    named = [x for x in model.layers if type(getattr(x, "quantize_config", None)) is ThreeBits]
    return named[0].weight_quantizers[0][1].clip.numpy().item()


def three_dense():
    x = keras.Input((6,))
    y = layers.Dense(5, activation="relu", name="first")(x)
    y = layers.Dense(4, name="second")(y)
    return keras.Model(x, layers.Dense(3, name="third")(y), name="three")


def with_conv():
    x = keras.Input((6, 6, 2))
    y = layers.Flatten()(layers.Conv2D(3, 3, name="conv")(x))
    return keras.Model(x, layers.Dense(2, name="head")(y))


def quantized_names(model):
    return [x.layer.name for x in model.layers if isinstance(x, tfq.QuantizeWrapper)]


def float_names(model):
    """Names of the plain layers that hold weights."""
    plain = [x for x in model.layers if not isinstance(x, tfq.QuantizeWrapper)]
    return [x.name for x in plain if x.trainable_variables]


def data_for(model, rng, rows=8):
    return rng.normal(size=(rows, *model.inputs[0].shape[1:])).astype(np.float32)


class TestOneLayer:
    def test_only_the_marked_layer_is_quantized(self, rng):
        x = keras.Input((6,))
        y = layers.Dense(5, name="plain")(x)
        y = tfq.quantize_annotate_layer(layers.Dense(4, name="marked"))(y)
        model = keras.Model(x, layers.Dense(3, name="behind")(y))
        quantized = tfq.quantize_apply(model)
        assert quantized_names(quantized) == ["marked"]
        assert float_names(quantized) == ["plain", "behind"]
        data = data_for(model, rng)
        np.testing.assert_allclose(quantized(data), model(data), atol=0.03)

    def test_its_own_config_comes_before_the_registry(self, rng):
        dense = layers.Dense(4, use_bias=False)
        marked = tfq.quantize_annotate_layer(dense, ThreeBits())
        model = keras.Sequential([keras.Input((6,)), marked])
        quantized, data = tfq.quantize_apply(model), data_for(model, rng)
        kernel = dense.kernel.numpy()
        step = np.abs(kernel).max() / 3 * own_clip(quantized)
        expected = data @ (np.clip(np.rint(kernel / step), -4, 3) * step)
        np.testing.assert_allclose(quantized(data), expected, atol=1e-5)

    def test_its_own_config_holds_behind_batch_norm_and_relu(self, rng):
        mark = tfq.quantize_annotate_layer
        conv, norm = layers.Conv2D(3, 3), layers.BatchNormalization()
        parts = [mark(conv, ThreeBits()), mark(norm), mark(layers.ReLU())]
        model = keras.Sequential([keras.Input((6, 6, 2)), *parts])
        norm.set_weights([rng.uniform(0.5, 2, 3) for _ in range(4)])
        quantized, data = tfq.quantize_apply(model), data_for(model, rng)
        plain = keras.models.clone_model(
            keras.Sequential([keras.Input((6, 6, 2)), conv, norm, layers.ReLU()])
        )
        kernel, bias = conv.get_weights()
        step = np.abs(kernel).max() / 3 * own_clip(quantized)
        kernel = np.clip(np.rint(kernel / step), -4, 3) * step
        plain.set_weights([kernel, bias, *norm.get_weights()])
        np.testing.assert_allclose(quantized(data), plain(data), atol=1e-4)

    def test_a_marked_model_computes_and_trains_as_before(self, rng):
        mark = tfq.quantize_annotate_layer
        dense = layers.Dense(4)
        model = keras.Sequential([keras.Input((6,)), mark(dense), mark(layers.Dropout(0.5))])
        data = data_for(model, rng, 64)
        np.testing.assert_array_equal(model(data), dense(data))
        assert (np.asarray(model(data, training=True)) == 0).mean() > 0.3
        model.compile("sgd", "mse")
        before = dense.kernel.numpy()
        model.fit(data, np.ones((64, 4), np.float32), verbose=0)
        assert (dense.kernel.numpy() != before).any()

    def test_a_marked_model_is_saved_and_loaded(self, rng, tmp_path):
        marked = tfq.quantize_annotate_layer(layers.Dense(4), ThreeBits())
        model = keras.Sequential([keras.Input((6,)), marked])
        model.save(tmp_path / "model.keras")
        loaded, data = keras.models.load_model(tmp_path / "model.keras"), data_for(model, rng)
        np.testing.assert_array_equal(loaded(data), model(data))
        np.testing.assert_array_equal(
            tfq.quantize_apply(loaded)(data), tfq.quantize_apply(model)(data)
        )

    def test_the_marked_model_is_not_changed(self, rng):
        model = keras.Sequential([keras.Input((6,)), tfq.quantize_annotate_layer(layers.Dense(4))])
        data, before = data_for(model, rng), model.get_weights()
        expected = np.asarray(model(data))
        tfq.calibrate(tfq.quantize_apply(model), data, progress=False)
        np.testing.assert_array_equal(model(data), expected)
        for w, old in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(w, old)


class TestSkip:
    @pytest.mark.parametrize("quantize", ANNOTATE, ids=["model", "annotate"])
    def test_by_name(self, quantize):
        quantized = quantize(three_dense(), skip=["second"])
        assert "second" not in quantized_names(quantized)
        assert {"first", "third"} <= set(quantized_names(quantized))
        assert float_names(quantized) == ["second"]

    @pytest.mark.parametrize("quantize", ANNOTATE, ids=["model", "annotate"])
    def test_by_type(self, quantize):
        quantized = quantize(with_conv(), skip=[layers.Dense])
        assert "conv" in quantized_names(quantized)
        assert float_names(quantized) == ["head"]

    @pytest.mark.parametrize("quantize", ANNOTATE, ids=["model", "annotate"])
    def test_by_object(self, quantize):
        model = three_dense()
        quantized = quantize(model, skip=[model.get_layer("third")])
        assert float_names(quantized) == ["third"]

    def test_skipping_everything_leaves_it_exact(self, rng):
        model = three_dense()
        data = data_for(model, rng)
        quantized = tfq.quantize_model(model, skip=["first", layers.Dense])
        np.testing.assert_allclose(quantized(data), model(data), atol=1e-6)

    @pytest.mark.parametrize("quantize", ANNOTATE, ids=["model", "annotate"])
    def test_a_skipped_layer_keeps_its_activation_float(self, quantize):
        quantized = quantize(three_dense(), skip=["first"])
        first = quantized.get_layer("first")
        assert first.activation is keras.activations.relu

    @pytest.mark.parametrize(
        "call", [tfq.quantize_model, tfq.quantize_annotate_model], ids=["model", "annotate"]
    )
    @pytest.mark.parametrize(
        ("name", "suggestion"), [("frist", "'first'"), ("Third", "'third'"), ("zzz", "'second'")]
    )
    def test_an_unknown_name_is_an_error_with_suggestions(self, call, name, suggestion):
        with pytest.raises(ValueError, match=r"'three' does not have\. Received: ") as error:
            call(three_dense(), skip=[name])
        assert repr(name) in str(error.value)
        assert suggestion in str(error.value).split("Did you mean")[1]

    @pytest.mark.parametrize("skip", ["first", 3, None, [3], [None], [["first"]]])
    @pytest.mark.parametrize(
        "call", [tfq.quantize_model, tfq.quantize_annotate_model], ids=["model", "annotate"]
    )
    def test_what_names_no_layers_is_an_error(self, call, skip):
        with pytest.raises(TypeError, match=r"`skip` must .*Received: "):
            call(three_dense(), skip=skip)


class TestErrors:
    @pytest.mark.parametrize("config", [ThreeBits, "w8a8", QuantSpec(8), 8])
    def test_what_is_no_config_is_refused(self, config):
        with pytest.raises(TypeError, match=r"must be an instance of QuantizeConfig.*Received"):
            tfq.quantize_annotate_layer(layers.Dense(2), config)

    def test_a_layer_is_marked_once(self):
        marked = tfq.quantize_annotate_layer(layers.Dense(2, name="twice"))
        with pytest.raises(ValueError, match="'twice' is marked already"):
            tfq.quantize_annotate_layer(marked)

    def test_a_model_is_no_layer(self):
        with pytest.raises(ValueError, match=r"expects a layer\. Received: the model 'three'"):
            tfq.quantize_annotate_layer(three_dense())

    @pytest.mark.parametrize("thing", ["dense", None, layers.Dense])
    def test_what_is_no_layer_cannot_be_marked(self, thing):
        with pytest.raises((TypeError, ValueError), match=r"expects a layer\. Received"):
            tfq.quantize_annotate_layer(thing)

    def test_a_model_without_marks_is_refused(self):
        with pytest.raises(ValueError, match="No layer of 'three' is marked"):
            tfq.quantize_apply(three_dense())

    @pytest.mark.parametrize("call", [tfq.quantize_model, tfq.quantize_apply])
    def test_an_unknown_scheme_is_refused_before_anything_else(self, call):
        with pytest.raises(ValueError, match=r"`scheme` must be one of.*Received: 'int8'"):
            call(three_dense(), "int8")

    @pytest.mark.parametrize(
        "call", [tfq.quantize_model, tfq.quantize_apply, tfq.quantize_annotate_model]
    )
    @pytest.mark.parametrize("thing", [layers.Dense(2), "model.keras", None])
    def test_what_is_no_model_is_refused(self, call, thing):
        with pytest.raises(TypeError, match=r"Keras 3 model is expected\. Received"):
            call(thing)

    @pytest.mark.parametrize(
        "call", [tfq.quantize_model, tfq.quantize_apply, tfq.quantize_annotate_model]
    )
    def test_a_model_that_is_not_built_is_refused(self, call):
        with pytest.raises(ValueError, match=r"'early' is not built.*keras\.Input"):
            call(keras.Sequential([layers.Dense(2)], name="early"))

    @pytest.mark.parametrize(
        "call", [tfq.quantize_model, tfq.quantize_apply, tfq.quantize_annotate_model]
    )
    def test_a_model_is_quantized_once(self, call):
        with pytest.raises(ValueError, match=r"'three' is quantized already: it contains"):
            call(tfq.quantize_model(three_dense()))

    def test_a_model_that_keras_quantized_is_refused(self):
        model = three_dense()
        model.get_layer("first").quantize("int8")
        with pytest.raises(ValueError, match="quantized already by Keras: layer 'first' is int8"):
            tfq.quantize_model(model)

    def test_a_layer_that_cannot_be_made_again_is_named(self):
        class Unfinished(layers.Layer):
            def __init__(self, size):
                super().__init__(name="mine")
                self.size = size

            def call(self, x):
                return tf.cast(x, "float32") * self.size

            def compute_output_shape(self, input_shape):
                return input_shape

        model = keras.Sequential([keras.Input((6,)), Unfinished(2), layers.Dense(2)])
        with pytest.raises(ValueError, match=r"'mine' \(Unfinished\) cannot be copied: its `get_c"):
            tfq.quantize_model(model)
