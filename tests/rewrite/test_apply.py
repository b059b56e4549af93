import keras
import numpy as np
import pytest
from keras import layers
from small import chain

import tfquant as tfq
from tfquant.rewrite.lower import lower


def calibrated(model, data, scheme="w8a8"):
    return tfq.calibrate(tfq.quantize_model(model, scheme), data, progress=False)


def assert_close(got, expected, share=0.03):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, atol=share * np.abs(expected).max())


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(32, 6)).astype(np.float32)


@pytest.mark.parametrize("kinds", [("softmax", None), ("tanh", "sigmoid"), ("softmax", "relu")])
def test_concatenating_outputs_of_dictated_grids_is_right(kinds, vectors):
    x = keras.Input((6,))
    branches = [layers.Dense(4, activation=kind)(x) for kind in kinds]
    model = keras.Model(x, layers.Concatenate()(branches))
    quantized = tfq.quantize_model(model)
    assert_close(quantized(vectors), model(vectors))
    tfq.calibrate(quantized, vectors, progress=False)
    assert_close(quantized(vectors), model(vectors))


@pytest.mark.parametrize("scheme", ["w8a8", "w8"])
def test_an_adapted_normalization_keeps_its_statistics(scheme, rng):
    norm = layers.Normalization()
    norm.adapt(rng.normal(size=(64, 6)) * 3 + 5)
    model = chain(keras.Input((6,)), norm, layers.Dense(3))
    data = (rng.normal(size=(32, 6)) * 3 + 5).astype(np.float32)
    quantized = tfq.quantize_model(model, scheme)
    assert_close(quantized(data), model(data))
    if scheme == "w8a8":
        tfq.calibrate(quantized, data, progress=False)
        assert_close(lower(quantized).model(data), model(data))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_a_model_of_mixed_precision_is_quantized(policy, rng):
    data = rng.normal(size=(16, 6, 6, 3)).astype(np.float32)
    parts = [
        layers.Conv2D(4, 3, dtype=policy),
        layers.BatchNormalization(dtype=policy),
        layers.ReLU(dtype=policy),
        layers.Flatten(dtype=policy),
        layers.Dense(3, dtype=policy),
    ]
    model = chain(keras.Input((6, 6, 3)), *parts)
    quantized = calibrated(model, data)
    expected = np.asarray(keras.ops.cast(model(data), "float32"))
    assert_close(np.asarray(keras.ops.cast(quantized(data), "float32")), expected, 0.05)
    quantized.compile("sgd", "mse")
    quantized.fit(data, np.zeros((16, 3), np.float32), epochs=1, verbose=0)


@pytest.mark.parametrize("scheme", ["w8a8", "w8"])
@pytest.mark.parametrize("reader", ["mean", "recurrent"])
def test_masks_reach_the_layers_that_read_them(scheme, reader, rng):
    read = layers.GlobalAveragePooling1D() if reader == "mean" else layers.LSTM(4)
    x = keras.Input((7,), dtype="int32")
    y = layers.Embedding(10, 6, mask_zero=True)(x)
    y = layers.Dense(6, activation="tanh")(y)
    model = keras.Model(x, layers.Dense(3)(read(y)))
    data = rng.integers(1, 10, (16, 7)).astype(np.int32)
    data[:, 3:] = 0
    quantized = tfq.quantize_model(model, scheme)
    # The fixed grid of tanh is coarse for outputs as small as these.
    assert_close(quantized(data), model(data), 0.1)
    if scheme == "w8a8":
        tfq.calibrate(quantized, data, progress=False)
        assert_close(quantized(data), model(data), 0.1)


@pytest.mark.parametrize("activation", [layers.LeakyReLU, layers.PReLU])
def test_an_activation_that_is_a_layer_moves_behind_the_layer(activation, vectors):
    model = chain(keras.Input((6,)), layers.Dense(3, activation=activation()))
    assert_close(calibrated(model, vectors)(vectors), model(vectors))


def test_a_layer_called_with_its_input_by_keyword_is_quantized(vectors):
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(3)(inputs=x))
    assert_close(calibrated(model, vectors)(vectors), model(vectors))


@pytest.mark.parametrize("how", ["quantize_model", "annotate"])
@pytest.mark.parametrize("what", ["layer of a nested model", "nested model"])
def test_what_is_inside_a_nested_model_can_be_skipped(how, what):
    inside = keras.Input((6,))
    inner = keras.Model(inside, layers.Dense(6, name="hidden")(inside), name="inner")
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(2, name="head")(inner(x)))
    skip = ["inner" if what == "nested model" else "hidden"]
    if how == "quantize_model":
        quantized = tfq.quantize_model(model, skip=skip)
    else:
        quantized = tfq.quantize_apply(tfq.quantize_annotate_model(model, skip=skip))
    names = [
        layer.layer.name for layer in quantized.layers if isinstance(layer, tfq.QuantizeWrapper)
    ]
    assert names == ["head"]


@pytest.mark.parametrize("where", ["frozen kernel", "moving variance"])
def test_weights_that_are_not_finite_name_their_layer(where):
    dense, norm = layers.Dense(3, name="bad_one", trainable=False), layers.BatchNormalization()
    model = chain(keras.Input((6,)), dense, norm)
    broken = dense.kernel if where == "frozen kernel" else norm.moving_variance
    broken.assign(np.full(broken.shape, np.nan))
    with pytest.raises(ValueError, match="finite") as error:
        tfq.quantize_model(model)
    assert "bad_one" in str(error.value) or norm.name in str(error.value)


@keras.saving.register_keras_serializable(package="tfquant_tests")
class FloatOutput(tfq.QuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return []

    def get_output_quantizers(self, layer):
        return [None]


def test_a_kernel_behind_a_float_output_gets_a_quantized_input():
    x = keras.Input((6,))
    y = tfq.quantize_annotate_layer(layers.LayerNormalization(), FloatOutput())(x)
    y = tfq.quantize_annotate_layer(layers.Dense(3))(y)
    quantized = tfq.quantize_apply(keras.Model(x, y))
    kinds = [type(layer).__name__ for layer in quantized.layers]
    assert kinds[-2:] == ["Quantize", "QuantizeWrapper"]


def test_annotating_a_model_leaves_its_operations_working(vectors):
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(4)(x)[:, :2] * 3.0)
    annotated = tfq.quantize_annotate_model(model)
    np.testing.assert_array_equal(annotated(vectors), model(vectors))
    assert_close(tfq.quantize_apply(annotated)(vectors), model(vectors))
