"""XNNPACK's integer kernels, which LiteRT runs wherever it can: float32 multipliers, 8 bits.

Every function takes `Grid`s that hold their integers and returns output steps, `q - zero_point`, a
float tensor; those of products are yet to be rounded, to even.
"""

import numpy as np
from keras import ops


def add(inputs, output):
    """Adds two tensors with multipliers of 21 bits.

        shift = 20 - floor(log2(max(|a_scale|, |b_scale|))),  scales divided by the output's
        y = floor((a * round(a_scale * 2**shift) + b * round(b_scale * 2**shift)) / 2**shift + 1/2)

    Source: XNNPACK, `xnn_init_qs8_add_minmax_*`.
    """
    return _sum(inputs, output, 1.0)


def subtract(inputs, output):
    """Subtracts as `add` adds."""
    return _sum(inputs, output, -1.0)


def _sum(inputs, output, sign):
    ratios = [ops.cast(x.params.scale / output.params.scale, "float64") for x in inputs]
    unit = 2.0 ** (20.0 - ops.floor(ops.log2(ops.maximum(*ratios))))
    a, b = (
        ops.cast(x.steps, "float64") * ops.round(ratio * unit)
        for x, ratio in zip(inputs, ratios, strict=True)
    )
    return ops.floor((a + sign * b) / unit + 0.5)


def product(inputs, output):
    """Multiplies integers, then scales once: `(a * b) * (a_scale * b_scale / scale)`."""
    a, b = inputs
    return (a.steps * b.steps) * (a.params.scale * b.params.scale / output.params.scale)


def matrix_product(inputs, output, sums):
    """Scales the sums of a product of two tensors: `sums * (a_scale * b_scale / scale)`.

    XNNPACK takes products whose second tensor has the zero point 0.

    Args:
        inputs: `Grid`s of the tensors.
        output: `Grid` of the output.
        sums: Float32 tensor of integers.
    """
    a, b = inputs
    return sums * (a.params.scale * b.params.scale / output.params.scale)


def to_step(inputs, output):
    """Brings integers to another step: a multiplier of 8 fractional bits.

        y = floor(x * round(256 * ratio) / 256 + 1/2)

    Source: XNNPACK, `xnn_init_qs8_cvt_*`.
    """
    (x,) = inputs
    ratio = x.params.scale / output.params.scale
    return ops.floor(x.steps * ops.round(256.0 * ratio) * 2.0**-8 + 0.5)


def leaky_relu(inputs, output, slope):
    """Multiplies by fractions of 8 bits.

    m = round(256 * s / so),  times the slope where x < 0
    y = floor(x * m / 256 + 1/2)
    """
    (x,) = inputs
    ratio = x.params.scale / output.params.scale
    positive, negative = ops.round(256.0 * ratio), ops.round(256.0 * (ratio * slope))
    return ops.floor(x.steps * ops.where(x.steps < 0, negative, positive) * 2.0**-8 + 0.5)


def mean(inputs, output, sums, count):
    """Scales sums to a mean; see `total`."""
    return _scaled_sums(inputs, output, sums, count, 1.0 / ops.cast(count, "float32"))


def total(inputs, output, sums, count):
    """Scales sums over some axes, every step in float32.

        scale = (x.scale / y.scale) * (1 / count)                           of a mean
        scale = x.scale / y.scale                                           of a sum
        bias  = y.zero_point - count * x.zero_point * scale
        q     = sum(q_x) * scale + bias

    The zero points are within the rounded sum, so that a tie may fall otherwise than without them.
    Found by comparing LiteRT 2.3 with the orders in which this can be computed, at ties.

    Args:
        inputs: `Grid` of the input.
        output: `Grid` of the output.
        sums: Float32 tensor of integers, sums of `q_x - x.zero_point`.
        count: Number of values in a sum.
    """
    return _scaled_sums(inputs, output, sums, count, 1.0)


def _scaled_sums(inputs, output, sums, count, factor):
    (x,), y = inputs, output.params
    scale = ops.cast(x.params.scale, "float32") / y.scale * factor
    shift = ops.cast(count, "float32") * ops.cast(x.params.zero_point, "float32")
    zero_point = ops.cast(y.zero_point, "float32")
    return ops.round((sums + shift) * scale + (zero_point - shift * scale)) - zero_point


def resize_bilinear(inputs, output, size):
    """Interpolates with weights of 11 bits, first along rows.

        row  = left * 2**11 + (right - left) * round(2**11 * fraction)
        y    = (top * 2**11 + (bottom - top) * round(2**11 * fraction) + 2**21) >> 22

    Source: XNNPACK, `xnn_s8_ibilinear_ukernel`.

    Args:
        inputs: `Grid` of images `(batch, height, width, channels)`.
        output: `Grid` of the output, that of the input.
        size: Height and width of the output.
    """
    (x,) = inputs
    q = ops.cast(x.steps + x.params.zero_point, "float64")
    (top, bottom, down), (left, right, across) = (
        _interpolation(n, m, axis)
        for n, m, axis in zip(x.steps.shape[1:3], size, (1, 2), strict=True)
    )
    rows = []
    for index in (top, bottom):
        row = ops.take(q, index, axis=1)
        a, b = (ops.take(row, i, axis=2) for i in (left, right))
        rows.append(a * 2.0**11 + (b - a) * across)
    a, b = rows
    y = ops.floor((a * 2.0**11 + (b - a) * down + 2.0**21) * 2.0**-22)
    return y - ops.cast(output.params.zero_point, "float64")


def _interpolation(size, new_size, axis):
    """Returns the neighbours of each output pixel along an axis and the second one's weight."""
    scale = np.float32(size) / np.float32(new_size)
    place = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    place = np.minimum(np.maximum(place, np.float32(0)), np.float32(size - 1))
    low = place.astype(np.int32)
    fraction = np.rint((place - low) * np.float32(2.0**11)).astype(np.float64)
    shape = [1, 1, 1, 1]
    shape[axis] = new_size
    return low, np.minimum(low + 1, size - 1), fraction.reshape(shape)
