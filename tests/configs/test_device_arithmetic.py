"""The simulation against integer arithmetic written out in numpy."""

import numpy as np
import pytest
from keras import layers, ops

from tfquant.numerics import QuantParams, QuantSpec
from tfquant.quantizers import Static, grid_of, steps_of
from tfquant.registry import KERAS_LAYERS, SCHEMES
from tfquant.wrappers import CallSite, Quantize, QuantizeWrapper

INT8 = QuantSpec(8)
IN_SCALE, IN_ZERO = np.float32(0.0317), 5
OUT_SCALE, OUT_ZERO = np.float32(0.0893), -11


def on_input_grid(rng, shape):
    """Random int8 values, and the tensor on its grid that stands for them."""
    q = rng.integers(-128, 128, shape)
    point = Quantize(Static(INT8))
    point.quantizer.set_params(QuantParams(IN_SCALE, IN_ZERO))
    x = (q - IN_ZERO).astype(np.float32) * IN_SCALE
    return q, point(ops.convert_to_tensor(x))


def wrapped(layer, scheme="w8a8", **kwargs):
    config = KERAS_LAYERS.get_quantize_config(layer, SCHEMES[scheme])
    wrapper = QuantizeWrapper(layer, config, **kwargs)
    for quantizer in wrapper.output_quantizers[0]:
        quantizer.set_params(QuantParams(OUT_SCALE, OUT_ZERO))
    return wrapper


def integers(y):
    """The int8 values of a tensor on a grid."""
    grid = grid_of(y)
    return np.asarray(steps_of(y)).astype(np.int64) + int(grid.params.zero_point)


def windows(x, size, stride):
    """`(batch, out, out, size, size, channels)`, padding "valid", one step at a time."""
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    patches = [[x[:, r : r + size, c : c + size] for c in columns] for r in rows]
    return np.moveaxis(np.array(patches), 2, 0)


def dense(x, kernel):
    return x @ kernel


def conv2d(x, kernel):
    return np.einsum("bijhwc,hwco->bijo", windows(x, kernel.shape[0], 2), kernel)


def depthwise(x, kernel):
    y = np.einsum("bijhwc,hwcm->bijcm", windows(x, kernel.shape[0], 2), kernel)
    return y.reshape(*y.shape[:3], -1)


def transposed(x, kernel):
    """Every input value adds its multiple of the kernel to the output, stride 2."""
    (batch, height, width, _), (size, _, channels, _) = x.shape, kernel.shape
    y = np.zeros((batch, (height - 1) * 2 + size, (width - 1) * 2 + size, channels), np.int64)
    for r in range(height):
        for c in range(width):
            y[:, 2 * r : 2 * r + size, 2 * c : 2 * c + size] += np.einsum(
                "bc,hwoc->bhwo", x[:, r, c], kernel
            )
    return y


# The layer, its input shape, the axes of the kernel that a channel's scale is shared by, the
# integer sums of products.
LAYERS = {
    "dense": (lambda **k: layers.Dense(6, **k), (5,), (0,), dense),
    "conv2d": (lambda **k: layers.Conv2D(6, 3, strides=2, **k), (7, 7, 3), (0, 1, 2), conv2d),
    "depthwise": (
        lambda **k: layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, **k),
        (7, 7, 3),
        (0, 1),
        depthwise,
    ),
    "transposed": (
        lambda **k: layers.Conv2DTranspose(6, 3, strides=2, **k),
        (4, 4, 3),
        (0, 1, 3),
        transposed,
    ),
}


def make(name, rng, use_bias=True):
    factory, shape, shared, products = LAYERS[name]
    layer = factory(use_bias=use_bias)
    layer.build((None, *shape))
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer, shape, shared, products


def make_norm(rng, gamma, variance, epsilon=1e-3):
    norm = layers.BatchNormalization(epsilon=epsilon)
    norm.build((None, 6))
    norm.set_weights([gamma, rng.normal(size=6), rng.normal(size=6), variance])
    return norm


def expected_output(q, layer, norm, shared, products):
    """Integer arithmetic in numpy, with batch norm folded in float64."""
    kernel = layer.get_weights()[0]
    magnitude = np.abs(kernel).max(axis=shared, keepdims=True)
    step = (magnitude * np.float32(1 / 127)).astype(np.float32)
    k = np.clip(np.rint(kernel / step), -127, 127).astype(np.int64)
    bias = layer.get_weights()[1].astype(np.float64) if layer.use_bias else np.zeros(6)
    gain = np.ones(6)
    if norm is not None:
        gamma, beta, mean, variance = (w.astype(np.float64) for w in norm.get_weights())
        gain = gamma / np.sqrt(variance + norm.epsilon)
        bias = (bias - mean) * gain + beta
    scale = (step.ravel().astype(np.float64) * np.abs(gain)).astype(np.float32)
    sums = products((q - IN_ZERO).astype(np.int64), k) * np.sign(gain).astype(np.int64)
    b = np.rint(bias / (np.float64(IN_SCALE) * scale.astype(np.float64))).astype(np.int64)
    accumulator = sums + b
    assert np.abs(accumulator).max() < 2**24  # Float32 holds it.
    multiplier = (IN_SCALE * scale).astype(np.float32) / OUT_SCALE
    y = np.rint(accumulator.astype(np.float32) * multiplier)
    return np.clip(y + OUT_ZERO, -128, 127).astype(np.int64)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_kernel_computes_integers_only(name, use_bias, rng):
    layer, shape, shared, products = make(name, rng, use_bias)
    q, x = on_input_grid(rng, (8, *shape))
    y = wrapped(layer)(x)
    expected = expected_output(q, layer, None, shared, products)
    np.testing.assert_array_equal(integers(y), expected)
    steps = (expected - OUT_ZERO).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(y), steps * OUT_SCALE)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_folded_batch_norm_computes_integers_only(name, use_bias, rng):
    layer, shape, shared, products = make(name, rng, use_bias)
    norm = make_norm(rng, rng.normal(size=6), rng.uniform(0.1, 3, 6))
    q, x = on_input_grid(rng, (8, *shape))
    expected = expected_output(q, layer, norm, shared, products)
    got = integers(wrapped(layer, batch_norm=norm)(x))
    # The integers of the bias may differ by one where float64 stands on a half.
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_folded_integers_are_the_unfolded_ones_up_to_sign(name, rng):
    layer, *_ = make(name, rng)
    gamma = np.array([1.3, -0.7, 0.2, -2.0, 5.0, -0.01])
    norm = make_norm(rng, gamma, rng.uniform(0.1, 3, 6))
    plain, folded = wrapped(layer), wrapped(layer, batch_norm=norm)
    k = np.asarray(plain.quantize_config.integer_weights(plain, IN_SCALE)[0])
    f = np.asarray(folded.quantize_config.integer_weights(folded, IN_SCALE)[0])
    axes = {"depthwise": (-2, -1), "transposed": (-2,)}.get(name, (-1,))
    shape = [n if a - k.ndim in axes else 1 for a, n in enumerate(k.shape)]
    np.testing.assert_array_equal(f, k * np.sign(gamma).reshape(shape))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dead", [0.0, 1e-12, -1e-9, 1e-6])
def test_biases_and_sums_fit_an_int32_whatever_the_gain(name, dead, rng):
    layer, *_ = make(name, rng)
    gamma = np.array([1.0, dead, -1.0, dead, 0.5, dead])
    norm = make_norm(rng, gamma, np.array([1.0, 1.0, 1e-12, 1e-12, 4.0, 1e6]), epsilon=1e-5)
    wrapper = wrapped(layer, batch_norm=norm)
    kernel, scale, bias = (
        np.asarray(v) for v in wrapper.quantize_config.integer_weights(wrapper, IN_SCALE)
    )
    assert np.isfinite(scale).all() and (scale > 0).all()
    assert np.abs(bias).max() + np.abs(kernel).sum() * 255 < 2**31
    assert np.abs(kernel).max() <= 127


@pytest.mark.parametrize("name", LAYERS)
def test_a_channel_of_gain_zero_outputs_its_beta(name, rng):
    layer, shape, *_ = make(name, rng)
    norm = make_norm(rng, np.array([1.0, 0.0, -1.0, 0.0, 0.5, 0.0]), np.ones(6))
    _, x = on_input_grid(rng, (2, *shape))
    got = integers(wrapped(layer, batch_norm=norm)(x))[..., [1, 3, 5]]
    beta = norm.get_weights()[1][[1, 3, 5]]
    expected = np.clip(np.rint(beta / OUT_SCALE) + OUT_ZERO, -128, 127)
    # One step: the bias is a multiple of the floored scale.
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("clamp", [(0.0, None), (0.0, 6.0)])
def test_a_clamp_bounds_the_integers(clamp, rng):
    layer, shape, shared, products = make("conv2d", rng)
    q, x = on_input_grid(rng, (8, *shape))
    low = OUT_ZERO
    high = 127 if clamp[1] is None else min(127, int(np.rint(clamp[1] / OUT_SCALE)) + OUT_ZERO)
    expected = np.clip(expected_output(q, layer, None, shared, products), low, high)
    np.testing.assert_array_equal(
        integers(wrapped(layer, call_sites=[CallSite(clamp)])(x)), expected
    )


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8])
def test_average_pooling_rounds_halves_away_from_zero(size, rng):
    layer = layers.AveragePooling2D(size, strides=1)
    layer.build((None, 16, 16, 3))
    q, x = on_input_grid(rng, (16, 16, 16, 3))
    totals = windows(q, size, 1).sum(axis=(3, 4))
    # int8 kernels divide toward zero after adding half the count with the sign of the sum.
    count = size * size
    expected = np.sign(totals) * ((np.abs(totals) + count // 2) // count)
    np.testing.assert_array_equal(integers(wrapped(layer)(x)), expected)


def test_average_pooling_rounds_edge_windows_of_same_padding_by_their_own_count(rng):
    layer = layers.AveragePooling2D(3, strides=1, padding="same")
    layer.build((None, 5, 5, 2))
    q, x = on_input_grid(rng, (16, 5, 5, 2))
    expected = np.empty_like(q)
    for r in range(5):
        for c in range(5):
            window = q[:, max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2]
            count, total = window.shape[1] * window.shape[2], window.sum(axis=(1, 2))
            expected[:, r, c] = np.sign(total) * ((2 * np.abs(total) + count) // (2 * count))
    np.testing.assert_array_equal(integers(wrapped(layer)(x)), expected)


def test_a_product_multiplies_integers_and_scales_once(rng):
    layer = layers.Multiply()
    layer.build([(None, 50), (None, 50)])
    (p, x), (q, y) = on_input_grid(rng, (40, 50)), on_input_grid(rng, (40, 50))
    product = ((p - IN_ZERO) * (q - IN_ZERO)).astype(np.float32)
    steps = np.rint(product * np.float32(np.float32(IN_SCALE * IN_SCALE) / OUT_SCALE))
    expected = np.clip(steps + OUT_ZERO, -128, 127)
    np.testing.assert_array_equal(integers(wrapped(layer)([x, y])), expected)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("size", [1, 3, 7, 8, 14])
def test_a_mean_sums_integers_and_scales_once(size, keepdims, rng):
    layer = layers.GlobalAveragePooling2D(keepdims=keepdims)
    layer.build((None, size, size, 40))
    q, x = on_input_grid(rng, (20, size, size, 40))
    total = (q - IN_ZERO).sum(axis=(1, 2), keepdims=keepdims).astype(np.float32)
    scale = np.float32(np.float64(IN_SCALE) / np.float64(OUT_SCALE) / size**2)
    expected = np.clip(np.rint(total * scale) + OUT_ZERO, -128, 127)
    np.testing.assert_array_equal(integers(wrapped(layer)(x)), expected)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.MaxPooling2D(2), (6, 6, 3)),
        (layers.ZeroPadding2D(1), (6, 6, 3)),
        (layers.Cropping2D(1), (6, 6, 3)),
        (layers.Flatten(), (6, 6, 3)),
        (layers.Permute((2, 1, 3)), (6, 6, 3)),
        (layers.UpSampling2D(2), (6, 6, 3)),
        (layers.GlobalMaxPooling2D(), (6, 6, 3)),
        (layers.Reshape((9, 12)), (6, 6, 3)),
        (layers.RepeatVector(3), (6,)),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_moving_values_keeps_their_integers_and_grid(layer, shape, rng):
    layer.build((None, *shape))
    q, x = on_input_grid(rng, (4, *shape))
    # A plain layer moves integers as it moves real numbers; padding is real zero.
    expected = np.asarray(layer((q - IN_ZERO).astype(np.float32))) + IN_ZERO
    y = wrapped(layer)(x)
    np.testing.assert_array_equal(integers(y), expected)
    assert float(grid_of(y).params.scale) == IN_SCALE
