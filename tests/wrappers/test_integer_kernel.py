"""`IntegerKernel` against numpy's integers."""

import keras
import numpy as np
import pytest

from tfquant.lowbit.layers import PackedDense
from tfquant.numerics import QuantParams, QuantSpec
from tfquant.quantizers import Grid, grid_of
from tfquant.wrappers import IntegerKernel, KernelSite

OUTPUT = Grid(QuantParams(np.float32(0.5), 3), QuantSpec(8))


def grid(scale, zero_point, num_bits=8):
    wide = num_bits > 8
    spec = QuantSpec(num_bits, symmetric=wide, narrow_range=wide)
    return Grid(QuantParams(np.float32(scale), zero_point), spec)


def kernel(q, sites, biases, scales, sign=None):
    static = {"activations": "static", "x_scale": 1.0, "group_size": 0, "num_bits": 4}
    layer = PackedDense.from_integers(q, np.ones(q.shape[1]), **static)
    made = IntegerKernel(layer, q.shape[1], sites, signed=sign is not None)
    made.set_parameters(biases, scales, sign)
    return made


def expected(steps, q, bias, scale, site):
    """Integers in numpy, then one product and one rounding. (16 bits are scaled in fixed point,
    of which `tests/numerics` knows more.)"""
    sums = (steps.astype(np.int64) @ q.astype(np.int64) + bias).astype(np.float32)
    multiplier = np.float32(site.input_scale) * scale.astype(np.float32)
    if site.output_scale is None:
        return sums * multiplier
    y = np.rint(sums * (multiplier / np.float32(site.output_scale)))
    low = -128 - site.output_zero_point
    if site.clamp is not None:
        low = max(low, 0)
    y = np.clip(y, low, 127 - site.output_zero_point)
    return y.astype(np.float32) * np.float32(site.output_scale)


@pytest.mark.parametrize(
    ("num_bits", "output", "clamp"),
    [(8, None, None), (8, OUTPUT, None), (8, OUTPUT, (0.0, None)), (16, None, None)],
)
def test_integers_are_multiplied_and_rounded_once(rng, num_bits, output, clamp):
    zero_point = -5 if num_bits == 8 else 0
    site = KernelSite.between(grid(0.25, zero_point, num_bits), output, clamp=clamp)
    q, scale = rng.integers(-8, 8, (20, 6)), rng.uniform(0.001, 0.02, 6).astype(np.float32)
    bias = rng.integers(-900, 900, 6)
    half = 2 ** (num_bits - 1)
    steps = rng.integers(-half + 1, half, (9, 20)) - zero_point
    made = kernel(q, [site], [bias], [scale])
    y = made(steps.astype(np.float32) * np.float32(0.25))
    np.testing.assert_array_equal(y, expected(steps, q, bias, scale, site))
    assert (grid_of(y) is None) == (output is None)


def test_each_site_has_its_grids_and_channels_may_be_stored_negated(rng):
    q, scale = rng.integers(-8, 8, (20, 6)), np.full(6, 0.01, np.float32)
    sign = np.array([1, -1, 1, 1, -1, 1])
    sites = [KernelSite.between(grid(s, z), OUTPUT) for s, z in ((0.25, -7), (0.5, 100))]
    biases = [rng.integers(-900, 900, 6) for _ in sites]
    made = kernel(q, sites, biases, [scale, scale], sign)
    again = IntegerKernel.from_config(made.get_config())
    again.set_weights(made.get_weights())
    for number, (site, bias) in enumerate(zip(sites, biases, strict=True)):
        steps = rng.integers(-128, 128, (9, 20)) - site.input_zero_point
        x = steps.astype(np.float32) * np.float32(site.input_scale)
        wanted = expected(steps, q * sign, bias, scale, site)
        np.testing.assert_array_equal(made(x, call_site=number), wanted)
        np.testing.assert_array_equal(again(x, call_site=number), wanted)


def test_a_site_is_read_back_as_it_was_written():
    site = KernelSite.between(
        grid(0.3, 4), OUTPUT, clamp=(0.0, 6.0), group="g", rounding="two_roundings"
    )
    assert KernelSite.from_dict(site.to_dict()) == site
    config = keras.saving.serialize_keras_object(site.to_dict())  # As a file would hold it.
    assert KernelSite.from_dict(keras.saving.deserialize_keras_object(config)) == site
