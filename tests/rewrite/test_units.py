import keras
import numpy as np
import pytest
from keras import layers
from small import chain, randomize

import tfquant as tfq
from tfquant.rewrite.lower import lower

# Keras 3.15 converts what it reads from a file without numpy 2's `copy` keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Of the largest value of the float model: rounding weights to 8 bits or half precision.
TOLERANCE = {"w8a8": 0.03, "f16": 2e-3}


def conv(**kwargs):
    return layers.Conv2D(4, 3, **kwargs)


def norm(**kwargs):
    return layers.BatchNormalization(**kwargs)


def branches(join, *after):
    x = keras.Input((6, 6, 3))
    y = join()([layers.Conv2D(4, 3)(x), layers.Conv2D(4, 3)(x)])
    for part in after:
        y = part(y)
    return keras.Model(x, y)


IMAGE, ROW, VECTOR = (6, 6, 3), (6, 3), (6,)
MODELS = {
    "conv_bn": lambda: chain(IMAGE, conv(), norm()),
    "conv_bn_relu": lambda: chain(IMAGE, conv(), norm(), layers.ReLU()),
    "conv_bn_relu6": lambda: chain(IMAGE, conv(use_bias=False), norm(), layers.ReLU(6.0)),
    "conv_bn_activation_relu6": lambda: chain(IMAGE, conv(), norm(), layers.Activation("relu6")),
    "conv_bn_swish": lambda: chain(IMAGE, conv(), norm(), layers.Activation("swish")),
    "conv_bn_leaky": lambda: chain(IMAGE, conv(), norm(), layers.LeakyReLU()),
    "conv_relu_bn": lambda: chain(IMAGE, conv(activation="relu"), norm()),
    "conv_swish_bn": lambda: chain(IMAGE, conv(activation="swish"), norm()),
    "conv_relu_layer_bn": lambda: chain(IMAGE, conv(), layers.ReLU(), norm()),
    "conv_bn_bn": lambda: chain(IMAGE, conv(), norm(), norm()),
    "conv_bn_without_scale": lambda: chain(IMAGE, conv(), norm(scale=False, center=False)),
    "conv_of_groups_bn": lambda: chain((6, 6, 4), layers.Conv2D(4, 3, groups=2), norm()),
    "conv1d_bn_relu": lambda: chain(ROW, layers.Conv1D(4, 3), norm(), layers.ReLU()),
    "dense_bn_relu": lambda: chain(VECTOR, layers.Dense(4), norm(), layers.ReLU()),
    "dense_rank3_bn": lambda: chain(ROW, layers.Dense(4), norm()),
    "depthwise_bn": lambda: chain(IMAGE, layers.DepthwiseConv2D(3, depth_multiplier=2), norm()),
    "depthwise1d_bn": lambda: chain(ROW, layers.DepthwiseConv1D(3, depth_multiplier=2), norm()),
    "transposed_bn_relu": lambda: chain(
        IMAGE, layers.Conv2DTranspose(4, 3, strides=2), norm(), layers.ReLU()
    ),
    "transposed1d_bn": lambda: chain(ROW, layers.Conv1DTranspose(4, 3, strides=2), norm()),
    "separable": lambda: chain(
        IMAGE, layers.SeparableConv2D(5, 3, activation="relu", depth_multiplier=2, padding="same")
    ),
    "separable1d_bn": lambda: chain(ROW, layers.SeparableConv1D(5, 3, strides=2), norm()),
    "bn_first": lambda: chain(IMAGE, norm(), conv()),
    "bn_alone_rank2": lambda: chain(VECTOR, norm(), layers.Dense(2)),
    "bn_alone_rank3": lambda: chain(ROW, norm(), layers.Conv1D(2, 3)),
    "bn_alone_rank4_relu": lambda: chain(IMAGE, norm(), layers.ReLU(), conv()),
    "bn_of_another_axis": lambda: chain(IMAGE, conv(), norm(axis=1), layers.ReLU()),
    "bn_last_of_conv3d": lambda: chain((4, 4, 4, 2), layers.Conv3D(3, 2), norm(), layers.ReLU()),
    "relu_of_3": lambda: chain(IMAGE, conv(), layers.ReLU(max_value=3.0)),
    "relu_of_threshold": lambda: chain(IMAGE, conv(), layers.ReLU(threshold=0.5)),
    "leaky_relu": lambda: chain(IMAGE, conv(), layers.ReLU(negative_slope=0.1)),
    "add_relu": lambda: branches(layers.Add, layers.ReLU()),
    "add_relu_conv": lambda: branches(layers.Add, layers.ReLU(6.0), conv()),
    "subtract_relu": lambda: branches(layers.Subtract, layers.ReLU()),
    "multiply_relu": lambda: branches(layers.Multiply, layers.ReLU()),
    "maximum_relu": lambda: branches(layers.Maximum, layers.ReLU()),
}


@pytest.mark.parametrize("scheme", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
def test_an_uncalibrated_model_computes_what_the_float_model_does(name, scheme, rng):
    """Nothing that was fused is lost, under schemes with and without activations' grids."""
    model = randomize(MODELS[name](), rng)
    x = rng.normal(size=(4, *model.inputs[0].shape[1:])).astype(np.float32)
    expected = np.asarray(model(x))
    got = tfq.quantize_model(model, scheme)(x)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE[scheme] * np.abs(expected).max())


def test_channels_first_convolutions_lose_neither_batch_norm_nor_relu(rng):
    x = keras.Input((3, 6, 6))
    y = layers.Conv2D(4, 3, data_format="channels_first")(x)
    y = layers.ReLU()(layers.BatchNormalization(axis=-1)(y))
    model = randomize(keras.Model(x, y), rng)
    quantized = tfq.quantize_model(model)
    wrappers = [x for x in quantized.layers if isinstance(x, tfq.QuantizeWrapper)]
    # The batch norm, of columns, runs as a convolution of ones, whose wrapper holds it and clamps.
    (wrapper,) = [x for x in wrappers if x.batch_norm is not None]
    assert sum(type(x.layer) is layers.Conv2D for x in wrappers) == 1
    assert wrapper.call_sites[0].clamp == (0.0, None)


def test_a_batch_norm_behind_a_layer_of_two_readers_stays_apart(rng):
    x = keras.Input(IMAGE)
    y = conv()(x)
    model = randomize(keras.Model(x, [norm()(y), layers.ReLU()(y)]), rng)
    data = rng.normal(size=(4, *IMAGE)).astype(np.float32)
    for got, expected in zip(tfq.quantize_model(model)(data), model(data), strict=True):
        np.testing.assert_allclose(got, expected, atol=0.03 * np.abs(expected).max())


def test_a_batch_norm_called_twice_survives_saving(rng, tmp_path):
    x = keras.Input(VECTOR)
    shared = norm()
    y = shared(layers.Dense(5)(x))
    model = randomize(keras.Model(x, shared(layers.ReLU()(y))), rng)
    data = rng.normal(size=(16, *VECTOR)).astype(np.float32)
    quantized = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    np.testing.assert_allclose(quantized(data), model(data), atol=0.05 * np.abs(model(data)).max())
    quantized.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded(data), quantized(data))


@keras.saving.register_keras_serializable(package="tfquant_tests")
class FourBitKernel(tfq.QuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        spec = tfq.QuantSpec(8, symmetric=True, granularity=tfq.PerAxis(-1))
        return [(layer.kernel, tfq.quantizers.AbsMax(spec))]

    def get_output_quantizers(self, layer):
        return [tfq.quantizers.Static(tfq.QuantSpec(8))]


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_layer_of_an_own_config_keeps_batch_norm_and_relu_when_lowered(activation, rng):
    mark = tfq.quantize_annotate_layer
    x = keras.Input(IMAGE)
    y = mark(conv(activation=activation), FourBitKernel())(x)
    y = mark(layers.ReLU())(mark(norm())(y))
    model = randomize(keras.Model(x, y), rng)
    data = rng.normal(size=(8, *IMAGE)).astype(np.float32)
    quantized = tfq.calibrate(tfq.quantize_apply(model), data, progress=False)
    expected = np.asarray(model(data))
    # Three layers in a row are rounded to 8 bits.
    np.testing.assert_allclose(quantized(data), expected, atol=0.05 * expected.max())
    lowered = lower(quantized).model
    np.testing.assert_allclose(lowered(data), expected, atol=0.05 * expected.max())


def test_a_batch_norm_in_front_of_a_dense_layer_is_folded_into_it(rng):
    model = randomize(
        chain(VECTOR, layers.Dense(5, activation="relu"), norm(), layers.Dense(3)), rng
    )
    data = rng.normal(size=(16, *VECTOR)).astype(np.float32)
    quantized = tfq.quantize_model(model)
    names = [layer.name for layer in quantized.layers]
    assert not [name for name in names if "batch_normalization" in name]
    expected = model.predict(data, verbose=0)
    tolerance = TOLERANCE["w8a8"] * np.abs(expected).max()
    np.testing.assert_allclose(quantized.predict(data, verbose=0), expected, atol=tolerance)
