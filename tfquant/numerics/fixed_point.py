"""From an integer accumulator to an integer output: the ways in which kernels scale and round.

Some kernels multiply the accumulator by a float32 and round to nearest even; others multiply by a
fixed-point number, with one rounding or two. Each function here computes one way exactly;
accumulators are floats that hold integers. Which kernel takes which way, `tfquant.devices` says.

Sources: XNNPACK, `xnn_init_qs8_qc8w_conv_minmax_fp32_*`; LiteRT,
`MultiplyByQuantizedMultiplier`; ruy, `Kernel8bitNeon`; gemmlowp, `doc/quantization.md`.
"""

from keras import ops

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
    high = ops.floor(steps * 2.0**-8)
    high_sum, low_sum = (
        ops.cast(multiply(half, z), "float64")
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
    return ops.cast(ROUNDINGS[rounding](accumulator, multiplier), "float32")


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
    exponent = ops.floor(ops.log2(multiplier)) + 1
    fraction = multiplier * 2.0 ** (-exponent)
    # log2 may be off by one at powers of two.
    exponent = ops.where(fraction >= 1.0, exponent + 1, exponent)
    exponent = ops.where(fraction < 0.5, exponent - 1, exponent)
    fraction = multiplier * 2.0 ** (-exponent)
    significand = round_half_away(fraction * 2.0**_SIGNIFICAND_BITS)
    overflow = significand == 2.0**_SIGNIFICAND_BITS
    significand = ops.where(overflow, significand / 2, significand)
    exponent = ops.where(overflow, exponent + 1, exponent)
    significand = ops.where(exponent < -_SIGNIFICAND_BITS, ops.zeros_like(significand), significand)
    return ops.cast(significand, "int64"), ops.cast(exponent, "int64")


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
    return ops.cast(rounding_shift(high, right), "float64")


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
    product = ops.cast(accumulator, "int64") * significand
    return ops.cast(
        rounding_shift(product, ops.minimum(int64(31) - exponent, int64(62))), "float64"
    )


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
    return ops.cast(ops.sign(high) * rounding_shift(ops.abs(high), right), "float64")


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
    reduced = ops.where(
        significand < int64(0x7FFF0000),
        ops.floor_divide(significand + int64(2**15), int64(2**16)),
        ops.full_like(significand, 0x7FFF),
    )
    product = ops.cast(accumulator, "int64") * reduced
    return ops.cast(rounding_shift(product, int64(15) - exponent), "float64")


def requantize_real(accumulator, multiplier):
    """Scales in float64, halves away from zero, as LiteRT's 16-bit FULLY_CONNECTED with a bias."""
    return round_half_away(ops.cast(accumulator, "float64") * multiplier)


# The ways to round, by the names that a device gives them.
ROUNDINGS = {
    "float32": requantize_float,
    "two_roundings": requantize_fixed_point,
    "one_rounding": requantize_one_rounding,
    "half_away": requantize_half_away,
    "short_significand": requantize_fixed_point_64,
    "float64": requantize_real,
}


def int64(value):
    """Returns an integer as a tensor of 64 bits."""
    return ops.convert_to_tensor(value, "int64")


def power_of_two(exponent):
    """Returns `2**exponent`, int64, of exponents of 0 to 62."""
    return ops.cast(2.0 ** ops.cast(exponent, "float64"), "int64")


def rounding_shift(x, bits):
    """Returns `x / 2**bits` to nearest, halves upward; int64."""
    divisor = power_of_two(bits)
    return ops.floor_divide(x + ops.floor_divide(divisor, int64(2)), divisor)


def round_half_away(x):
    """Rounds to nearest, halves away from zero."""
    return ops.sign(x) * ops.floor(ops.abs(x) + 0.5)


def _high_product(accumulator, multiplier):
    return _high_product_of(accumulator, *quantize_multiplier(multiplier))


def _high_product_of(accumulator, significand, exponent):
    """Returns the upper half of the product with the significand, and the shift that remains."""
    left = ops.maximum(exponent, int64(0))
    product = ops.cast(accumulator, "int64") * power_of_two(left) * significand
    return rounding_shift(product, int64(31)), ops.maximum(-exponent, int64(0))
