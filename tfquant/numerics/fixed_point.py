"""From an integer accumulator to an integer output: the ways in which kernels scale and round.

Some kernels multiply the accumulator by a float32 and round to nearest even; others multiply by a
fixed-point number, with one rounding or two. Each function here computes one way exactly;
accumulators are floats that hold integers. Which kernel takes which way, `tfquant.devices` says.

Written in TensorFlow's own operations: a call of Keras's costs several times as much, and one step
of an LSTM scales dozens of small tensors.

Sources: XNNPACK, `xnn_init_qs8_qc8w_conv_minmax_fp32_*`; LiteRT,
`MultiplyByQuantizedMultiplier`; ruy, `Kernel8bitNeon`; gemmlowp, `doc/quantization.md`.
"""

import tensorflow as tf

# Bits of the significand of a quantized multiplier.
_SIGNIFICAND_BITS = 31


def accumulate(multiply, steps, num_bits, zero_point=0):
    """Sums products of integers exactly, with kernels that take 8-bit integers.

    A float32 holds the sums of 8-bit integers (up to 2**24, beyond which it rounds). 16-bit ones
    are taken in halves, `steps = 256 * high + low`, and added up in float64.

    Args:
        multiply: Function of `x` and `z` that multiplies integers `x`, for which `x + z` is within
            -128 to 127, with a kernel, and returns their sums as float32.
        steps: Float tensor of integers `q - zero_point`.
        num_bits: Width of `q`.
        zero_point: That of `q`; 0 where it has more than 8 bits.

    Returns:
        Tensor of integers: float32, or float64 where `q` has more than 8 bits.
    """
    if num_bits <= 8:
        return multiply(steps, zero_point)
    high = tf.floor(steps * 2.0**-8)
    high_sum, low_sum = (
        tf.cast(multiply(half, z), tf.float64)
        for half, z in ((high, 0), (steps - high * 2.0**8, -128))
    )
    return high_sum * 2.0**8 + low_sum


def requantize(accumulator, multiplier, rounding: str):
    """Scales an accumulator to output steps.

    Args:
        accumulator: Float tensor of integers; float64 where they need it.
        multiplier: `input_scale * weight_scale / output_scale`, computed in this order, in the
            dtype that `multiplier_dtype` names.
        rounding: Name of a way to round, of `ROUNDINGS`.

    Returns:
        Float32 tensor of output steps, which `"float32"` leaves to be rounded.
    """
    return tf.cast(ROUNDINGS[rounding](accumulator, multiplier), tf.float32)


def multiplier_dtype(rounding: str) -> str:
    """Returns the dtype in which the scales of a kernel are multiplied."""
    return "float32" if rounding == "float32" else "float64"


def requantize_float(accumulator, multiplier):
    """Scales as XNNPACK does: one float32 product.

    Args:
        accumulator: Float32 tensor of integers.
        multiplier: Float32, `input_scale * weight_scale / output_scale`, computed in this order.

    Returns:
        Float32 tensor of output steps, not yet rounded.
    """
    return accumulator * multiplier


def quantize_multiplier(multiplier):
    """Writes a positive real number as `significand * 2**(exponent - 31)`.

    Args:
        multiplier: Float64 tensor of positive numbers.

    Returns:
        `(significand, exponent)`: int64 in `[2**30, 2**31)` and int64. A multiplier so small that
        the device shifts everything out gets significand 0.
    """
    # A float64 is 1.f * 2**(e - 1023), its bits e and f of 11 and 52: exact, and a few operations.
    bits = tf.bitcast(tf.convert_to_tensor(multiplier, tf.float64), tf.int64)
    exponent = tf.bitwise.right_shift(bits, 52) - 1022
    fraction = tf.bitwise.bitwise_or(tf.bitwise.bitwise_and(bits, 2**52 - 1), 2**52)
    significand = tf.bitwise.right_shift(fraction + 2**21, 22)
    overflow = tf.bitwise.right_shift(significand, _SIGNIFICAND_BITS)
    exponent += overflow
    significand = tf.bitwise.right_shift(significand, overflow)
    significand *= tf.cast(exponent >= -_SIGNIFICAND_BITS, tf.int64)
    return significand, exponent


def requantize_fixed_point(accumulator, multiplier):
    """Scales a 32-bit accumulator with two roundings, both halves upward.

        h = floor((a * significand + 2**30) / 2**31)
        y = floor((h + 2**(-exponent - 1)) / 2**-exponent)

    (`a` is first shifted left by a positive exponent.) A result can differ by one step from the
    exact product's nearest integer. So computes LiteRT's built-in convolution on x86-64.

    Args:
        accumulator: Float tensor of integers within int32.
        multiplier: Float64 tensor of positive numbers, broadcastable.

    Returns:
        Float64 tensor of integers.
    """
    high, right = _high_product(accumulator, multiplier)
    return tf.cast(rounding_shift(high, right), tf.float64)


def requantize_one_rounding(accumulator, multiplier):
    """Scales a 32-bit accumulator with one rounding, halves upward, as ruy does on ARM64.

        y = floor((a * significand + 2**(30 - exponent)) / 2**(31 - exponent))

    Found by comparing LiteRT 2.3 on ARM64 with the ways in which this can be computed, at ties.

    Args:
        accumulator: Float tensor of integers within int32.
        multiplier: Float64 tensor of positive numbers, broadcastable.

    Returns:
        Float64 tensor of integers.
    """
    significand, exponent = quantize_multiplier(multiplier)
    product = tf.cast(accumulator, tf.int64) * significand
    return tf.cast(rounding_shift(product, tf.minimum(31 - exponent, 62)), tf.float64)


def requantize_half_away(steps, multiplier):
    """Scales as `requantize_fixed_point`, but that the second rounding takes halves away from zero.

    Source: LiteRT, `MultiplyByQuantizedMultiplier`; gemmlowp, `RoundingDivideByPOT`.

    Args:
        steps: Float tensor of integers within int32.
        multiplier: Float64 tensor of positive numbers, broadcastable.

    Returns:
        Float64 tensor of integers.
    """
    return multiply_half_away(steps, *quantize_multiplier(multiplier))


def multiply_half_away(steps, significand, exponent):
    """`requantize_half_away` by a multiplier `significand * 2**(exponent - 31)`, int64."""
    high, right = _high_product_of(steps, significand, exponent)
    return tf.cast(tf.sign(high) * rounding_shift(tf.abs(high), right), tf.float64)


def requantize_fixed_point_64(accumulator, multiplier):
    """Scales a 64-bit accumulator as LiteRT's 16-bit convolutions do: a 15-bit significand.

        significand16 = (significand + 2**15) >> 16
        y = (a * significand16 + 2**(14 - exponent)) >> (15 - exponent)

    Args:
        accumulator: Float64 tensor of integers.
        multiplier: Float64 tensor of positive numbers, broadcastable.

    Returns:
        Float64 tensor of integers.
    """
    significand, exponent = quantize_multiplier(multiplier)
    reduced = tf.minimum(tf.bitwise.right_shift(significand + 2**15, 16), 2**15 - 1)
    product = tf.cast(accumulator, tf.int64) * reduced
    return tf.cast(rounding_shift(product, tf.minimum(15 - exponent, 62)), tf.float64)


def requantize_real(accumulator, multiplier):
    """Scales in float64, halves away from zero, as LiteRT's 16-bit FULLY_CONNECTED with a bias."""
    return round_half_away(tf.cast(accumulator, tf.float64) * multiplier)


# The ways to round, by the names that a device gives them.
ROUNDINGS = {
    "float32": requantize_float,
    "two_roundings": requantize_fixed_point,
    "one_rounding": requantize_one_rounding,
    "half_away": requantize_half_away,
    "short_significand": requantize_fixed_point_64,
    "float64": requantize_real,
}


def power_of_two(exponent):
    """Returns `2**exponent`, int64, of int64 exponents of 0 to 62."""
    return tf.bitwise.left_shift(tf.ones_like(exponent), exponent)


def rounding_shift(x, bits):
    """Returns `x / 2**bits` to nearest, halves upward; both int64."""
    half = tf.bitwise.right_shift(power_of_two(bits), 1)
    return tf.bitwise.right_shift(x + half, bits)


def round_half_away(x):
    """Rounds to nearest, halves away from zero."""
    return tf.sign(x) * tf.floor(tf.abs(x) + 0.5)


def _high_product(accumulator, multiplier):
    return _high_product_of(accumulator, *quantize_multiplier(multiplier))


def _high_product_of(accumulator, significand, exponent):
    """Returns the upper half of the product with the significand, and the shift that remains."""
    left = power_of_two(tf.maximum(exponent, 0))
    product = tf.cast(accumulator, tf.int64) * left * significand
    high = tf.bitwise.right_shift(product + 2**30, 31)
    return high, tf.minimum(tf.maximum(-exponent, 0), 62)
