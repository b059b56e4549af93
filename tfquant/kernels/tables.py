"""Functions that LiteRT looks up: in a table of all 256 integers, or in one of 513 to interpolate.

Functions of 8 bits are float32 functions of every integer; those of 16 bits interpolate between 512
places whose values are shifted so that the error in the middle is halved. The tables are made from
the scales as LiteRT makes them when it prepares an operator.

Sources: LiteRT, `LUTPopulate`, `LUTLookup`, `reference_integer_ops::Logistic`, `Tanh`,
`reference_ops::SoftmaxInt16`.
"""

import math

import numpy as np
import tensorflow as tf
from keras import ops

from tfquant.numerics.fixed_point import (
    multiply_half_away,
    power_of_two,
    quantize_multiplier,
    requantize_half_away,
    round_half_away,
    rounding_shift,
)

# Intervals of a table of 16 bits, each of 128 integers.
INTERVALS = 512

# So many values are computed one by one, as their table would be.
SMALL = 2**10

# round(65536 / (1 + exp(-i / 24))), which LOGISTIC and TANH of 16 bits interpolate. LiteRT's table
# is one above at these places.
_RAISED = (
    *(4, 8, 12, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 28, 29, 30, 31, 33, 34, 35, 37, 39, 40),
    *(41, 43, 44, 45, 46, 49, 50, 54, 62, 63, 64, 66, 82, 86, 93, 100, 103, 112, 116, 135, 255),
)
_SIGMOIDS = np.rint(65536.0 / (1.0 + np.exp(-np.arange(256) / 24.0)))
_SIGMOIDS[list(_RAISED)] += 1.0
_SIGMOIDS = _SIGMOIDS.astype(np.int64)


def in_float32(function):
    """Returns a function of float32 that is rounded from float64, as a C library's nearly is."""
    return lambda x: ops.cast(function(ops.cast(x, "float64")), "float32")


# expf: 32 powers of 2 in an octave, and a polynomial of degree 3 between them, the coefficients of
# Arm's optimized routines, which are glibc's since 2.27 and Android's.
_OCTAVE = 32
_POWERS = 2.0 ** (np.arange(_OCTAVE) / _OCTAVE)
_CUBIC, _SQUARE, _LINEAR = (
    float.fromhex(text) / _OCTAVE**degree
    for text, degree in (
        ("0x1.c6af84b912394p-5", 3),
        ("0x1.ebfce50fac4f3p-3", 2),
        ("0x1.62e42ff0c52d6p-1", 1),
    )
)


def exp(x):
    """The C library's `expf`, which is not always the float32 next to the exponential.

        k = round(x * 32 / log(2)),  r = x * 32 / log(2) - k
        y = 2**(k / 32) * (1 + C1 * r + (C2 + C3 * r) * r**2)

    in float64, then rounded to float32: one value in 2,000 is the second next.
    """
    # Beyond these float32 holds nothing or infinity.
    z = tf.clip_by_value(tf.cast(x, tf.float64), -150.0, 130.0) * (_OCTAVE / math.log(2.0))
    whole = tf.round(z)
    r, k = z - whole, tf.cast(whole, tf.int64)
    octave = tf.bitwise.right_shift(k, 5)
    power = tf.gather(_POWERS, k - octave * _OCTAVE)
    scale = tf.bitcast(tf.bitwise.left_shift(octave + 1023, tf.constant(52, tf.int64)), tf.float64)
    y = (_CUBIC * r + _SQUARE) * (r * r) + (_LINEAR * r + 1.0)
    return tf.cast(y * (power * scale), tf.float32)


def _erf_gelu(x):
    """`0.5 * x * erfc(-x / sqrt(2))`, in float32 but for `erfc`, whose result is rounded to it."""
    return np.float32(0.5) * x * in_float32(tf.math.erfc)(x * np.float32(-math.sqrt(0.5)))


def _tanh_gelu(x):
    """`0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))`, in float32 but for `tanh`."""
    half, cubic, one = np.float32(0.5), np.float32(0.044715), np.float32(1.0)
    inner = np.float32(math.sqrt(2.0 / math.pi)) * (x + cubic * x * x * x)
    return half * x * (one + in_float32(ops.tanh)(inner))


FUNCTIONS = {
    "ELU": lambda x: ops.where(x < 0, in_float32(ops.expm1)(x), x),
    "EXP": exp,
    "GELU": _erf_gelu,
    "GELU_TANH": _tanh_gelu,
    "LOG": in_float32(ops.log),
    "LOGISTIC": in_float32(ops.sigmoid),
    "RSQRT": lambda x: np.float32(1.0) / ops.sqrt(x),
    "TANH": in_float32(ops.tanh),
}


def look_up(name, round_to_integer=ops.round):
    """Returns the kernel of 8 bits of a function.

        y = round(f(x_scale * (q - zero_point)) * (1 / scale))

    Args:
        name: Key of `FUNCTIONS`.
        round_to_integer: How the table is rounded: XNNPACK's to even, LiteRT's own half away.

    Returns:
        The kernel; its `function` is the key of another form of the function.
    """

    def kernel(inputs, output, function=name):
        (x,) = inputs
        of = lambda steps: round_to_integer(  # noqa: E731
            FUNCTIONS[function](steps * x.params.scale) * (1.0 / output.params.scale)
        )
        shape = tuple(x.steps.shape)
        if x.spec.stored_bits > 8 or None in shape or math.prod(shape) <= SMALL:
            return of(x.steps)
        # As the device does: it takes less time and memory than the function of every value.
        first = (-128.0 if x.spec.signed else 0.0) - ops.cast(x.params.zero_point, "float32")
        table = of(tf.range(256.0) + first)
        places = tf.cast(tf.minimum(tf.maximum(x.steps - first, 0.0), 255.0), tf.int32)
        return tf.gather(table, places)

    return kernel


def interpolate(name, fused=False):
    """Returns the kernel of 16 bits of a function.

        x(i) = min + i * step,  v = f(x(i)),  vn = f(x(i + 1)),  vm = f(x(i) + step / 2)
        s    = round(v * inv),  mid = round((vn * inv + s) / 2)
        T[i] = s - round((mid - round(vm * inv)) / 2)
        y    = T[k] + (((T[k + 1] - T[k]) * (q & 127) + 64) >> 7),  k = 256 + (q >> 7)

    Args:
        name: Key of `FUNCTIONS`.
        fused: Whether products are added without rounding them, as a compiler for ARM64 does.

    Returns:
        The kernel; its `function` is the key of another form of the function.
    """

    def kernel(inputs, output, function=name):
        (x,) = inputs
        table = make_table(FUNCTIONS[function], x.params.scale, output.params.scale, fused)
        return interpolated(table, x.steps)

    return kernel


def inverse_root(fused=False):
    """Returns the kernel of 16 bits of `1 / sqrt(x)`, which ends at the largest integer at 0.

    See `interpolate`. Integers below 128 are on the line from there to the first value of the
    table: it computes well what is above a hundredth of the largest value that there is.
    """

    def kernel(inputs, output):
        (x,) = inputs
        largest = ops.cast(output.params.scale, "float32") * 32767.0

        def function(v):
            above = v > 0.0
            return ops.where(above, FUNCTIONS["RSQRT"](ops.where(above, v, 1.0)), largest)

        table = make_table(function, x.params.scale, output.params.scale, fused)
        return interpolated(table, x.steps)

    return kernel


def make_table(function, scale, output_scale, fused=False):
    """Returns the 513 entries of a table, float32 integers; see `interpolate`."""
    low, high = (ops.cast(scale, "float32") * bound for bound in (-32768.0, 32767.0))
    top, bottom = (ops.cast(output_scale, "float32") * bound for bound in (32767.0, -32768.0))
    step, inverse = (high - low) / float(INTERVALS), 65536.0 / (top - bottom)
    number = ops.arange(INTERVALS + 1, dtype="float32")
    places = _multiply_add(number, step, low, fused)
    values = function(places)
    middles = round_half_away(function(places[:-1] + step / 2.0) * inverse)
    rounded = round_half_away(values[:-1] * inverse)
    between = round_half_away(_multiply_add(values[1:], inverse, rounded, fused) / 2.0)
    table = rounded - round_half_away((between - middles) / 2.0)
    last = round_half_away(function(ops.reshape(high, (1,))) * inverse)
    return ops.clip(ops.concatenate([table, last]), -32768.0, 32767.0)


def _multiply_add(a, b, c, fused):
    """Returns `a * b + c`, float32, rounded once where `fused`."""
    if not fused:
        return a * b + c
    a, b, c = (ops.cast(x, "float64") for x in (a, b, c))
    return ops.cast(a * b + c, "float32")


def interpolated(table, q):
    """Looks integers of 16 bits up in a table of 513 entries; both float, as the result."""
    place = tf.floor(q * 2.0**-7)
    index = tf.cast(place, tf.int32) + INTERVALS // 2
    left, right = tf.gather(table, index), tf.gather(table, index + 1)
    return left + tf.floor(((right - left) * (q - place * 128.0) + 64.0) * 2.0**-7)


def logistic_16(inputs, output):
    """The sigmoid of 16 bits: 255 chords of `1 / (1 + exp(-|x|))`, and its mirror image."""
    del output
    x, negative = _in_chords(inputs)
    place = tf.bitwise.right_shift(x, 9)
    value = _or_end(_chord(place, x - place * 512, 512), place, 0x7FFF << 10)
    value = tf.where(negative, (1 << 25) + (1 << 9) - 1 - value, value + (1 << 9))
    return tf.cast(tf.bitwise.right_shift(value, 10), tf.float32)


def tanh_16(inputs, output):
    """The hyperbolic tangent of 16 bits: `2 * sigmoid(2 * x) - 1` on the chords of the sigmoid."""
    del output
    x, negative = _in_chords(inputs)
    place = tf.bitwise.right_shift(x, 8)
    value = _or_end(_chord(place, x - place * 256, 256), place, 0xFFFF << 8)
    half, rounding = 1 << 23, 1 << 7
    value = tf.where(negative, half + rounding - 1 - value, value - half + rounding)
    return tf.cast(tf.bitwise.right_shift(value, 8), tf.float32)


def _in_chords(inputs):
    """Returns `|x|` in units of 1 / (3 * 4096), rounded halves upward, and where `x < 0`."""
    (grid,) = inputs
    multiplier = tf.cast(grid.params.scale, tf.float64) * (4096.0 * 3.0)
    # The smallest shift that makes it more than half of 15 bits; then its fraction is cut off.
    _, exponent = quantize_multiplier(multiplier)
    shift = tf.minimum(tf.maximum(15 - exponent, 1), 32)
    enough = multiplier * tf.cast(power_of_two(shift - 1), tf.float64) > 32767.0 / 2.0
    shift = tf.minimum(shift - tf.cast(enough, tf.int64), 31)
    factor = tf.cast(multiplier * tf.cast(power_of_two(shift), tf.float64), tf.int64)
    x = rounding_shift(tf.cast(grid.steps, tf.int64) * factor, shift)
    return tf.abs(x), x < 0


def _chord(place, rest, width):
    place = tf.minimum(place, 254)
    left, right = tf.gather(_SIGMOIDS, place), tf.gather(_SIGMOIDS, place + 1)
    return left * width + rest * (right - left)


def _or_end(value, place, end):
    """Returns what the function tends to where the chords have come to their end."""
    return tf.where(place >= 255, tf.constant(end, tf.int64), value)


def softmax_16(inputs, output, beta=1.0, reciprocals=None):
    """The softmax of 16 bits over the last axis: tables of `exp(x)` and of `1 / (1 + x)`.

    d = x - max(x), brought to 65535 steps for -10 to 0
    e = exp(d),  n = number of leading zeros of sum(e) as an int32
    y = (e * reciprocal(sum(e) << (n - 1)) + half) >> (31 - n)

    Args:
        inputs: `Grid` of the input.
        output: `Grid` of the output.
        beta: What the input is multiplied by.
        reciprocals: Table, from `softmax_reciprocals`; `None` for LiteRT's.
    """
    del output
    (x,) = inputs
    ratio = ops.cast(x.params.scale * np.float32(beta), "float64") / (10.0 / 65535.0)
    difference = x.steps - ops.max(x.steps, axis=-1, keepdims=True)
    difference = ops.cast(requantize_half_away(difference, ratio), "float32")
    exponential = interpolated(_EXPONENTIALS, ops.clip(difference + 32767.0, -32768.0, 32767.0))
    total = ops.sum(ops.cast(exponential, "float64"), axis=-1, keepdims=True)
    length = ops.floor(ops.log2(total)) + 1.0  # Bits of the sum: 32 less its leading zeros.
    shifted = ops.floor((total * 2.0 ** (31.0 - length) + 2.0**13) * 2.0**-14)
    place = ops.clip(shifted - (2.0**15 + 2.0**16), -32768.0, 32767.0)
    reciprocals = _RECIPROCALS if reciprocals is None else reciprocals
    reciprocal = interpolated(reciprocals, ops.cast(place, "float32"))
    wide = ops.cast(exponential, "float64") * ops.cast(reciprocal, "float64")
    shift = length - 1.0
    result = ops.floor((wide + 2.0 ** (shift - 1.0)) * 2.0**-shift)
    return ops.clip(result, 0.0, 32767.0)


def _table_between(function, low, high, dtype="float64"):
    """A table of 513 entries over `low` to `high`, in steps of 1/32768, made in a dtype."""
    low, high = np.array([low, high], dtype)
    step = (high - low) / INTERVALS
    places = low + np.arange(INTERVALS).astype(dtype) * step
    half_away = lambda v: np.trunc(v + np.copysign(np.asarray(0.5, dtype), v))  # noqa: E731
    rounded = half_away(function(places) * 32768.0)
    following, middle = function(places + step) * 32768.0, function(places + step / 2)
    between = half_away((following + rounded) / 2.0)
    table = rounded - half_away((between - half_away(middle * 32768.0)) / 2.0)
    table = np.append(table, half_away(function(high) * 32768.0))
    return np.clip(table, -32768, 32767).astype(np.float32)


def softmax_reciprocals(dtype="float64"):
    """Returns the table of `1 / (1 + x)` between 0 and 1, made in a dtype."""
    return _table_between(lambda x: 1 / (1 + x), 0, 1, dtype)


_EXPONENTIALS = _table_between(np.exp, -10.0, 0.0)
_RECIPROCALS = softmax_reciprocals()


def softmax_float_table(inputs, output, beta=1.0):
    """The softmax of 8 bits over the last axis, on a table of float32 exponentials.

    e = exp(-scale * beta * (max(x) - x)),  y = floor(e * (1 / (sum(e) * output_scale)) + 1/2)
    """
    (x,) = inputs
    scale = ops.cast(x.params.scale, "float32") * np.float32(beta)
    e = exp((x.steps - ops.max(x.steps, axis=-1, keepdims=True)) * scale)
    total = ops.cumsum(e, axis=-1)[..., -1:]  # In order, one after the other.
    return ops.floor(e * (1.0 / (total * output.params.scale)) + 0.5)


def log_softmax(inputs, output):
    """The logarithm of the softmax of 8 bits over the last axis, on a table of exponentials.

    s = sum(exp(-x_scale * (max(x) - x)))
    y = round((x_scale / scale) * q - (x_scale * max(q) + log(s)) / scale),  all in float32
    """
    (x,) = inputs
    scale, output_scale = (ops.cast(g.params.scale, "float32") for g in (x, output))
    largest = ops.max(x.steps, axis=-1, keepdims=True)
    total = ops.cumsum(exp((x.steps - largest) * scale), axis=-1)[..., -1:]
    zero_point = ops.cast(x.params.zero_point, "float32")
    least = scale * (largest + zero_point) + in_float32(ops.log)(total)
    return ops.round((scale / output_scale) * (x.steps + zero_point) - least / output_scale)


def softmax_integer_table(inputs, output, beta=1.0):
    """The softmax of 8 bits over the last axis, on a table of 16-bit exponentials: ARM64's.

        v = round(exp(scale * beta * (x - max(x))) * 65535),  at most 65535
        y = v / (sum(v) * output_scale), in fixed point with two roundings

    Found by comparing LiteRT 2.3 on ARM64 with the ways in which this can be computed.
    """
    (x,) = inputs
    scale = ops.cast(x.params.scale, "float32") * np.float32(beta)
    e = exp((x.steps - ops.max(x.steps, axis=-1, keepdims=True)) * scale)
    v = ops.minimum(ops.floor(ops.cast(e * 65535.0, "float64") + 0.5), 65535.0)
    total = ops.cast(ops.sum(v, axis=-1, keepdims=True), "float32")
    inverse = ops.cast(1.0 / (total * output.params.scale), "float64")
    return multiply_half_away(v, *quantize_multiplier(inverse))
