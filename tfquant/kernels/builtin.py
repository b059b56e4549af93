"""LiteRT's built-in integer kernels, which run what XNNPACK does not take: fixed-point multipliers.

Every function takes `Grid`s that hold their integers and returns output steps, `q - zero_point`, a
float tensor of integers.

Sources: LiteRT, `reference_integer_ops`, `reference_ops`, and the `Prepare` functions before them.
"""

import math

import numpy as np
import tensorflow as tf
from keras import ops, tree

from tfquant.numerics.fixed_point import (
    multiply_half_away,
    power_of_two,
    quantize_multiplier,
    requantize_fixed_point,
    requantize_fixed_point_64,
    requantize_half_away,
    round_half_away,
)


def to_step(inputs, output):
    """Brings integers to another step: `x * (x_scale / scale)`, the ratio in float64."""
    (x,) = inputs
    s, so = (ops.cast(g.params.scale, "float64") for g in (x, output))
    return requantize_half_away(x.steps, s / so)


def to_step_halves_upward(inputs, output):
    """Brings integers to another step as `to_step`, both roundings halves upward.

    The kernel does so 16 integers at a time; what is left over rounds as in `to_step`, which this
    does not know.
    """
    (x,) = inputs
    s, so = (ops.cast(g.params.scale, "float64") for g in (x, output))
    return requantize_fixed_point(x.steps, s / so)


def scaled(inputs, output):
    """Brings integers to another step as `to_step`, the ratio in float32."""
    (x,) = inputs
    return requantize_half_away(x.steps, ops.cast(x.params.scale / output.params.scale, "float64"))


def clamped(kernel, low=None, high=None):
    """Returns a kernel of one tensor whose real output is bounded by `low` and `high`."""

    def bounded(inputs, output):
        steps = kernel(inputs, output)
        scale = ops.cast(output.params.scale, "float32")
        if low is not None:
            steps = ops.maximum(steps, ops.cast(ops.round(low / scale), steps.dtype))
        if high is not None:
            steps = ops.minimum(steps, ops.cast(ops.round(high / scale), steps.dtype))
        return steps

    return bounded


def add(shift, rounding=requantize_half_away):
    """Returns the kernel of sums: both brought to a common step, then the sum to the output's.

        twice = 2 * max(a_scale, b_scale)
        y = (((a << shift) * (a_scale / twice) + (b << shift) * (b_scale / twice))
             * (twice / (2**shift * scale)))

    Args:
        shift: Bits by which the integers are shifted before: 20 of 8-bit ones, 15 of 16-bit ones.
        rounding: How the two are rounded to the common step.
    """
    return lambda inputs, output: _sum(inputs, output, shift, rounding, 1.0)


def subtract(shift, rounding=requantize_half_away):
    """Returns the kernel of differences; see `add`."""
    return lambda inputs, output: _sum(inputs, output, shift, rounding, -1.0)


def _sum(inputs, output, shift, rounding, sign):
    a_scale, b_scale, scale = (ops.cast(x.params.scale, "float64") for x in (*inputs, output))
    twice = 2.0 * ops.maximum(a_scale, b_scale)
    a, b = (ops.cast(x.steps, "float64") * 2.0**shift for x in inputs)
    total = rounding(a, a_scale / twice) + rounding(sign * b, b_scale / twice)
    return requantize_half_away(total, twice / (2.0**shift * scale))


def product(inputs, output):
    """Multiplies integers and scales them: `(a * b) * (a_scale * b_scale / scale)`."""
    a, b = inputs
    ratio = a.params.scale * b.params.scale / output.params.scale
    steps = ops.cast(a.steps, "float64") * ops.cast(b.steps, "float64")
    return requantize_half_away(steps, ops.cast(ratio, "float64"))


def matrix_product(rounding):
    """Returns the kernel that scales the sums of a product of two computed tensors.

    sums * ((a_scale * b_scale) / scale),  the product in float32, the quotient in float64
    """

    def kernel(inputs, output, sums):
        a, b = inputs
        product = ops.cast(a.params.scale * b.params.scale, "float64")
        return rounding(sums, product / ops.cast(output.params.scale, "float64"))

    return kernel


def total(inputs, output, sums, count):
    """Scales sums in float32, halves away from zero: `round(sums * (s / so))`."""
    del count
    (x,) = inputs
    return round_half_away(ops.cast(sums, "float32") * (x.params.scale / output.params.scale))


def mean(inputs, output, sums, count):
    """Scales sums to a mean by an integer multiplier that is divided by the count.

    shift = min(floor(log2(count)), 32, 31 + exponent)
    m     = (significand << shift) // count,  of exponent - shift
    """
    (x,) = inputs
    s, so = (ops.cast(g.params.scale, "float64") for g in (x, output))
    significand, exponent = quantize_multiplier(s / so)
    count = ops.cast(count, "int64")
    shift = ops.cast(ops.floor(ops.log2(ops.cast(count, "float64") + 0.5)), "int64")
    shift = ops.minimum(ops.minimum(shift, 32), exponent + 31)
    factor = ops.floor_divide(significand * power_of_two(shift), count)
    return multiply_half_away(sums, factor, exponent - shift)


def leaky_relu(inputs, output, slope):
    """Scales by `s / so`, and by the slope times that where `x < 0`."""
    (x,) = inputs
    s, so = x.params.scale, output.params.scale
    positive, negative = (ops.cast(v, "float64") for v in (s / so, s * slope / so))
    return ops.where(
        x.steps < 0,
        requantize_half_away(x.steps, negative),
        requantize_half_away(x.steps, positive),
    )


def prelu(inputs, output):
    """Scales by `s / so`; where `x < 0`, times the integers of the slopes."""
    x, alpha = inputs
    s, so = x.params.scale, output.params.scale
    positive, negative = (ops.cast(v, "float64") for v in (s / so, s * alpha.params.scale / so))
    return ops.where(
        x.steps < 0,
        requantize_half_away(x.steps * alpha.steps, negative),
        requantize_half_away(x.steps, positive),
    )


def reduce_product(inputs, output, axes, keepdims):
    """Multiplies all values along some axes and scales behind every factor.

        m = (s**n / so)**(1 / n)
        y = q0,   y = round(y * q_i * m) for each further factor,   round(y * m)

    Args:
        inputs: `Grid` of the input.
        output: `Grid` of the output.
        axes: Sorted axes, of known lengths.
        keepdims: Whether the output keeps them, of length 1.
    """
    (x,) = inputs
    rank = len(x.steps.shape)
    kept = [axis for axis in range(rank) if axis not in axes]
    count = math.prod(x.steps.shape[axis] for axis in axes)
    steps = ops.transpose(ops.cast(x.steps, "float64"), (*axes, *kept))
    first, *others = ops.unstack(ops.reshape(steps, (count, *ops.shape(steps)[len(axes) :])))
    s, so = (ops.cast(g.params.scale, "float64") for g in (x, output))
    multiplier = ops.exp(ops.log(s) - ops.log(so) / count)
    y = first
    for factor in others:
        y = requantize_fixed_point_64(y * factor, multiplier)
    y = requantize_fixed_point_64(y, multiplier)
    return ops.expand_dims(y, axes) if keepdims else y


def reduce_product_or_copy(inputs, output, axes, keepdims):
    """Multiplies as `reduce_product`; a single integer is copied, whatever the grids."""
    (x,) = inputs
    if math.prod(x.steps.shape[axis] for axis in axes) > 1:
        return reduce_product(inputs, output, axes, keepdims)
    moved = x.steps + (x.params.zero_point - output.params.zero_point)
    return moved if keepdims else ops.squeeze(moved, axes)


def magnitude(inputs, output):
    """Scales magnitudes: `|x| * (s / so)`."""
    (x,) = inputs
    return scaled((x._replace(steps=ops.abs(x.steps)),), output)


def resize_bilinear(inputs, output, size):
    """Interpolates with weights of 10 bits, halves away from zero.

        place = number * step + step // 2 - 2**9,  step = (2**10 * old + new // 2) // new
        y     = round(sum(q * weight_down * weight_across) / 2**20)

    Args:
        inputs: `Grid` of images `(batch, height, width, channels)`.
        output: `Grid` of the output, that of the input.
        size: Height and width of the output.
    """
    (x,) = inputs
    zero_point = ops.cast(output.params.zero_point, "float64")
    q = ops.cast(x.steps, "float64") + zero_point
    for axis, new in zip((1, 2), size, strict=True):
        low, high, weight = _places(q.shape[axis], new, axis)
        q = ops.take(q, low, axis) * (2.0**10 - weight) + ops.take(q, high, axis) * weight
    return round_half_away(q * 2.0**-20) - zero_point


def _places(old, new, axis):
    """Returns the neighbours of each output pixel along an axis and the second one's weight."""
    step = (2**10 * old + new // 2) // new
    place = np.arange(new) * step + step // 2 - 2**9
    low = np.maximum(np.trunc(place / 2**10).astype(np.int32), 0)
    high = np.minimum(np.trunc((place + 2**10 - 1) / 2**10).astype(np.int32), old - 1)
    shape = [1, 1, 1, 1]
    shape[axis] = new
    return low, high, (place - 2**10 * low).astype(np.float64).reshape(shape)


def unit_length(inputs, output):
    """Brings vectors of the last axis to length 1: `128 * x / sqrt(sum(x**2))`, two roundings."""
    del output
    (x,) = inputs
    steps = tf.cast(x.steps, tf.int64)
    significand, exponent = _inverse_root(tf.reduce_sum(steps * steps, -1, keepdims=True))
    return multiply_half_away(steps, significand, exponent + 7)


def inverse_root(inputs, output):
    """`1 / sqrt(x)`, kept in steps of 2**-20; the largest integer at 0."""
    (x,) = inputs
    scale, output_scale = (ops.cast(g.params.scale, "float64") for g in (x, output))
    steps = tf.cast(x.steps, tf.int64)
    significand, exponent = _inverse_root(tf.maximum(steps, 0))
    fine = multiply_half_away(tf.ones_like(steps), significand, exponent + 20)
    significand, exponent = quantize_multiplier(1.0 / (ops.sqrt(scale) * output_scale))
    y = multiply_half_away(fine, significand, exponent - 20)
    return tf.where(steps == 0, tf.constant(255.0, y.dtype), y)


def _inverse_root(x):
    """Returns `1 / sqrt(x)` as `(significand, exponent)`: `significand * 2**(exponent - 31)`.

    Five of Newton's steps on `x * 4**n` in 1/4 to 1, from 1, in 32 bits, three before the point:

        y = y * 3 / 2 - x / 2 * y**3

    Args:
        x: Int64 tensor of what int32 holds, none negative; 0 counts as 1.
    """
    bits = tf.bitwise.right_shift(tf.bitcast(tf.cast(tf.maximum(x, 2), tf.float64), tf.int64), 52)
    length = bits - 1022
    wide = length > 29  # One pair of bits is cut off.
    pairs = tf.where(wide, tf.ones_like(x), tf.bitwise.right_shift(31 - length, 1) - 1)
    y = tf.ones_like(x) * 2**28
    fraction = tf.where(
        wide,
        tf.bitwise.right_shift(x, 3),
        tf.bitwise.left_shift(x, tf.maximum(2 * pairs - 1, 0)),
    )
    half = tf.bitwise.right_shift(fraction + 1, 1)
    for _ in range(5):
        cube = _clip_32(_product_32(_product_32(y, y), y) * 2**6)
        y = _clip_32((_product_32(y, 3 * 2**27) - _product_32(half, cube)) * 2**3)
    y = _product_32(y, round(math.sqrt(0.5) * 2**31))
    shift = tf.where(wide, 12 * tf.ones_like(x), 11 - pairs)
    y = tf.bitwise.left_shift(y, tf.maximum(-shift, 0))
    one = x <= 1
    return tf.where(one, tf.ones_like(x) * (2**31 - 1), y), tf.where(
        one, 0 * x, -tf.maximum(shift, 0)
    )


def _product_32(a, b):
    """Returns the upper half of the doubled product of 32-bit integers, rounded halves upward."""
    return tf.bitwise.right_shift(a * b + 2**30, 31)


def _clip_32(x):
    return tf.clip_by_value(x, -(2**31), 2**31 - 1)


def hard_swish(inputs, output):
    """Computes `x * relu6(x + 3) / 6` in 16-bit fixed point.

    m(a, b)  = trunc((a * b + 2**14 * sign(a * b)) / 2**15)            a rounded product
    h        = 128 * x
    gate     = (m(h, 16-bit significand of input_scale / 128 / (3 / 2**15)) + 2**15) >> 1
    product  = m(h, 16-bit significand of input_scale / 128 / output_scale)
    y        = trunc(gate * product / 2**15) * 2**exponent,            halves away from zero
    """
    (x,) = inputs
    fine_scale = ops.cast(x.params.scale, "float32") / 128.0
    to_output, output_exponent = _short_multiplier(fine_scale / output.params.scale)
    to_gate, gate_exponent = _short_multiplier(fine_scale / (3.0 / 2.0**15))
    saturate = lambda v: ops.clip(v, -(2.0**15), 2.0**15 - 1)  # noqa: E731
    fine = ops.cast(x.steps, "float64") * 128.0
    left, right = ops.maximum(gate_exponent, 0.0), ops.maximum(-gate_exponent, 0.0)
    gate = saturate(fine * 2.0 ** ops.maximum(left - 1.0, 0.0))
    gate = _product(gate, to_gate)
    gate = saturate(gate * 2.0 ** ops.minimum(left, 1.0))
    gate = round_half_away(gate / 2.0**right)
    gate = ops.floor((gate + 2.0**15) / 2.0)
    result = _truncate(gate * _product(fine, to_output) / 2.0**15)
    return round_half_away(result * 2.0**output_exponent)


def average(inputs, output, mean_of, whole=False):
    """Rounds means of raw integers half away from zero.

    Args:
        inputs: `Grid` of the input.
        output: `Grid` of the output, that of the input.
        mean_of: Function of a float tensor that returns the means.
        whole: Whether they are of all values of a channel.
    """
    del output, whole
    (x,) = inputs
    means = mean_of(x.steps)
    # A mean of up to 10,000 integers is a multiple of 1e-4: what is closer to a half is one.
    raw = means + x.params.zero_point
    return ops.sign(raw) * ops.floor(ops.abs(raw) + (0.5 + 1e-5)) - x.params.zero_point


def _short_multiplier(multiplier):
    """Returns 16-bit significand and exponent of a multiplier, as float64."""
    significand, exponent = quantize_multiplier(ops.cast(multiplier, "float64"))
    short = ops.floor((ops.cast(significand, "float64") + 2.0**15) / 2.0**16)
    return ops.minimum(short, 2.0**15 - 1), ops.cast(exponent, "float64")


def _product(a, b):
    """Returns the upper half of the doubled product of 16-bit integers, rounded."""
    product = a * b
    nudge = ops.where(product >= 0, 2.0**14, 1.0 - 2.0**14)
    return _truncate((product + ops.cast(nudge, "float64")) / 2.0**15)


def _truncate(x):
    return ops.sign(x) * ops.floor(ops.abs(x))


def flat_axes(axis, rank):
    """Returns the axes of a reduction, sorted and counted from the front."""
    axes = range(rank) if axis is None else tree.flatten(axis)
    return sorted(a % rank for a in axes)
