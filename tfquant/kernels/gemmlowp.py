"""gemmlowp's series of 16 bits, which LiteRT takes for sigmoids where a step is a power of two.

A number is an integer of 16 bits with some bits before the point: it stands for
`integer * 2**(bits - 15)`. Products are rounded halves upward, halves of integers away from zero,
and what leaves 16 bits is clipped. A function of 16 bits has 65,536 values: they are computed once,
and looked up.

Source: gemmlowp, `fixedpoint.h`.
"""

import functools
import math

import numpy as np
import tensorflow as tf

_LOW, _HIGH = -32768, 32767


def logistic_16(inputs, output):
    """The sigmoid of integers in steps of 2**-12: `1 / (1 + exp(-|x|))`, and its mirror image."""
    del output
    return _looked_up(inputs, _logistic_table())


def tanh_16(shift):
    """Returns the hyperbolic tangent of integers in steps of `2**(shift - 12)`.

    tanh(|x|) = (1 - exp(-2 * |x|)) / (1 + exp(-2 * |x|)),  and its mirror image
    """

    def kernel(inputs, output):
        del output
        return _looked_up(inputs, _tanh_table(shift))

    return kernel


def _looked_up(inputs, table):
    (x,) = inputs
    return tf.gather(table, tf.cast(x.steps, tf.int32) - _LOW)


@functools.cache
def _logistic_table():
    q = np.arange(_LOW, _HIGH + 1)
    positive = _clip(_reciprocal(_exp(-np.abs(q), 3)) * 2)
    return _constant(np.where(q == 0, 2**14, np.where(q > 0, positive, _HIGH - positive)))


@functools.cache
def _tanh_table(shift):
    q = _clip(np.arange(_LOW, _HIGH + 1) * 2**shift)
    magnitude = _clip((_reciprocal(_exp(-np.abs(q), 4)) - 2**13) * 4)
    return _constant(np.sign(q) * magnitude)


def _constant(table):
    """Returns a float tensor that graphs share."""
    with tf.init_scope():
        return tf.constant(table.astype(np.float32))


def _exp(x, bits):
    """`exp(x)` of `x <= 0` with `bits` before the point; the result has none.

    x    = rest - quarters,  rest in -1/4 to 0,  quarters a multiple of 1/4
    rest = series of degree 4 around -1/8
    y    = rest * exp(-2**i) for each bit 2**i of the quarters
    """
    ones = 15 - bits  # Place of the bit that stands for 1.
    quarter = 2 ** (ones - 2)
    rest = (x & (quarter - 1)) - quarter
    t = _clip(rest * 2**bits) + 2**12
    squared = _product(t, t)
    cubic = _clip(_shifted(_product(squared, squared), 2) + _product(squared, t))
    terms = t + _shifted(_product(cubic, round(2**15 / 3)) + squared, 1)
    start = round(math.exp(-1 / 8) * 2**15)
    y = _clip(start + _product(start, terms))
    for place in range(ones - 2, 15):
        taken = (rest - x) & 2**place != 0
        y = np.where(taken, _product(y, round(math.exp(-(2.0 ** (place - ones))) * 2**15)), y)
    return np.where(x == 0, _HIGH, y)


def _reciprocal(x):
    """`2 / (1 + x)` of `x` in 0 to 1, by three of Newton's steps; two bits before the point."""
    half = (x + _HIGH + 1) // 2
    y = round(48 / 17 * 2**13) + _product(half, round(-32 / 17 * 2**13))
    for _ in range(3):
        y = y + _clip(_product(y, 2**13 - _product(half, y)) * 4)
    return y


def _clip(x):
    return np.clip(x, _LOW, _HIGH)


def _product(a, b):
    return _clip((a * b + 2**14) >> 15)


def _shifted(x, bits):
    """Returns `x / 2**bits` to nearest, halves away from zero."""
    return np.sign(x) * ((np.abs(x) + 2 ** (bits - 1)) >> bits)
