"""From an integer accumulator to an integer output, as the device's kernels do it.

LiteRT runs two families of integer kernels. XNNPACK, the default, multiplies the accumulator by a
float32 and rounds to nearest even. The kernels built into LiteRT, which run what XNNPACK does not
take (4-bit convolutions, 16-bit activations), multiply by a fixed-point number. Each function here
computes one of them exactly; accumulators are floats that hold integers.

Sources: XNNPACK, `xnn_init_qs8_qc8w_conv_minmax_fp32_*`; LiteRT,
`MultiplyByQuantizedMultiplier`; gemmlowp, `doc/quantization.md`.
"""

from keras import ops

# Steps per octave of the 31-bit significand of a quantized multiplier.
_SIGNIFICAND_BITS = 31


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
    exponent = ops.where(fraction >= 1.0, exponent + 1, ops.where(fraction < 0.5, exponent - 1, exponent))
    fraction = multiplier * 2.0 ** (-exponent)
    significand = _round_half_away(fraction * 2.0**_SIGNIFICAND_BITS)
    overflow = significand == 2.0**_SIGNIFICAND_BITS
    significand = ops.where(overflow, significand / 2, significand)
    exponent = ops.where(overflow, exponent + 1, exponent)
    significand = ops.where(exponent < -_SIGNIFICAND_BITS, ops.zeros_like(significand), significand)
    return ops.cast(significand, "int64"), ops.cast(exponent, "int64")


def requantize_fixed_point(accumulator, multiplier):
    """Scales a 32-bit accumulator as LiteRT's built-in kernels do.

        doubling high multiply:  h = (2 * a * significand + 2**31) >> 32, half rounded away from zero
        rounding shift right:    y = h / 2**-exponent, half rounded away from zero

    Two roundings: a result can differ by one step from the exact product's nearest integer.

    Args:
        accumulator: Float tensor of integers within int32.
        multiplier: Float64 tensor of positive numbers, broadcastable.

    Returns:
        Float64 tensor of integers.
    """
    significand, exponent = quantize_multiplier(multiplier)
    left = ops.maximum(exponent, 0)
    right = ops.maximum(-exponent, 0)
    product = ops.cast(accumulator, "int64") * _power_of_two(left) * significand
    high = _truncating_shift(product + ops.where(product >= 0, 2**30, 1 - 2**30), 31)
    return ops.cast(_rounding_shift(high, right), "float64")


def requantize_fixed_point_64(accumulator, multiplier):
    """Scales a 64-bit accumulator as LiteRT's 16-bit kernels do: a 15-bit significand.

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
        significand < 0x7FFF0000, (significand + 2**15) // 2**16, ops.full_like(significand, 0x7FFF)
    )
    divisor = _power_of_two(15 - exponent)
    product = ops.cast(accumulator, "int64") * reduced + divisor // 2
    return ops.cast(ops.floor_divide(product, divisor), "float64")


def _round_half_away(x):
    return ops.sign(x) * ops.floor(ops.abs(x) + 0.5)


def _power_of_two(exponent):
    return ops.cast(2.0 ** ops.cast(exponent, "float64"), "int64")


def _truncating_shift(x, bits):
    """`x / 2**bits` toward zero."""
    return ops.sign(x) * (ops.abs(x) // 2**bits)


def _rounding_shift(x, bits):
    """`x / 2**bits` to nearest, half away from zero."""
    divisor = _power_of_two(bits)
    return ops.sign(x) * ((ops.abs(x) + divisor // 2) // divisor)
