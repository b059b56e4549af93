"""From an integer accumulator to an integer output, as the device's kernels do it.

LiteRT runs two families of integer kernels. XNNPACK, the default, multiplies the accumulator by a
float32 and rounds to nearest even. The kernels built into LiteRT, which run what XNNPACK does not
take (4-bit convolutions, 16-bit activations), multiply by a fixed-point number. Each function here
computes one of them exactly; accumulators are floats that hold integers.

Sources: XNNPACK, `xnn_init_qs8_qc8w_conv_minmax_fp32_*`; LiteRT,
`MultiplyByQuantizedMultiplier`; gemmlowp, `doc/quantization.md`.
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


def requantize(accumulator, multiplier, fixed_point: bool):
    """Scales an accumulator to output steps with the kernels of one family.

    Args:
        accumulator: Float tensor of integers; float64 for 64-bit accumulators.
        multiplier: `input_scale * weight_scale / output_scale`, computed in this order: float32, or
            float64 where `fixed_point`.
        fixed_point: Whether the built-in kernels compute it, and not XNNPACK's.

    Returns:
        Float32 tensor of output steps, which XNNPACK's are yet to be rounded.
    """
    if not fixed_point:
        return requantize_float(accumulator, multiplier)
    wide = accumulator.dtype == "float64"
    function = requantize_fixed_point_64 if wide else requantize_fixed_point
    return ops.cast(function(accumulator, multiplier), "float32")


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
    significand = _round_half_away(fraction * 2.0**_SIGNIFICAND_BITS)
    overflow = significand == 2.0**_SIGNIFICAND_BITS
    significand = ops.where(overflow, significand / 2, significand)
    exponent = ops.where(overflow, exponent + 1, exponent)
    significand = ops.where(exponent < -_SIGNIFICAND_BITS, ops.zeros_like(significand), significand)
    return ops.cast(significand, "int64"), ops.cast(exponent, "int64")


def requantize_fixed_point(accumulator, multiplier):
    """Scales a 32-bit accumulator as LiteRT's built-in convolution (ruy's kernels) does.

        h = floor((a * significand + 2**30) / 2**31)
        y = floor((h + 2**(-exponent - 1)) / 2**-exponent)

    (`a` is first shifted left by a positive exponent.) Two roundings, both halves upward: a
    result can differ by one step from the exact product's nearest integer.

    Args:
        accumulator: Float tensor of integers within int32.
        multiplier: Float64 tensor of positive numbers, broadcastable.

    Returns:
        Float64 tensor of integers.
    """
    high, right = _high_product(accumulator, multiplier)
    return ops.cast(_rounding_shift(high, right), "float64")


def requantize_half_away(steps, multiplier):
    """Brings 16-bit integers to another step, or 8-bit ones to 16 bits, as LiteRT's QUANTIZE does.

    As `requantize_fixed_point`, but that the second rounding takes halves away from zero.

    Source: LiteRT, `MultiplyByQuantizedMultiplier`; gemmlowp, `RoundingDivideByPOT`.

    Args:
        steps: Float tensor of integers less their zero point.
        multiplier: Float64, step of `steps` divided by that of the output.

    Returns:
        Float64 tensor of integers.
    """
    high, right = _high_product(steps, multiplier)
    return ops.cast(ops.sign(high) * _rounding_shift(ops.abs(high), right), "float64")


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
        significand < _int64(0x7FFF0000),
        ops.floor_divide(significand + _int64(2**15), _int64(2**16)),
        ops.full_like(significand, 0x7FFF),
    )
    product = ops.cast(accumulator, "int64") * reduced
    return ops.cast(_rounding_shift(product, _int64(15) - exponent), "float64")


def requantize_sum(a, b, a_scale, b_scale):
    """Adds two tensors of integers as XNNPACK does, with multipliers of 21 bits.

        shift = 20 - floor(log2(max(|a_scale|, |b_scale|)))
        y = floor((a * round(a_scale * 2**shift) + b * round(b_scale * 2**shift)) / 2**shift + 1/2)

    Source: XNNPACK, `xnn_init_qs8_add_minmax_*`.

    Args:
        a: Float tensor of 8-bit integers.
        b: Likewise.
        a_scale: Float32, scale of `a` divided by that of the output.
        b_scale: Likewise; negative to subtract.

    Returns:
        Float32 tensor of integers.
    """
    a_scale, b_scale = ops.cast(a_scale, "float64"), ops.cast(b_scale, "float64")
    largest = ops.maximum(ops.abs(a_scale), ops.abs(b_scale))
    unit = 2.0 ** (20.0 - ops.floor(ops.log2(largest)))
    product = lambda x, scale: ops.cast(x, "float64") * ops.round(scale * unit)  # noqa: E731
    total = product(a, a_scale) + product(b, b_scale)
    return ops.cast(ops.floor(total / unit + 0.5), "float32")


def requantize_step(x, ratio):
    """Brings 8-bit integers to another step as XNNPACK does: a multiplier of 8 fractional bits.

        y = floor(x * round(256 * ratio) / 256 + 1/2)

    Source: XNNPACK, `xnn_init_qs8_cvt_*`, which takes ratios of 2**-8 to 2**7.

    Args:
        x: Float tensor of 8-bit integers less their zero point.
        ratio: Float32, step of `x` divided by that of the output.

    Returns:
        Float32 tensor of integers; out of XNNPACK's range the real product.
    """
    multiplier = ops.round(256.0 * ratio)
    within = ops.logical_and(ratio >= 2.0**-8, ratio <= 2.0**7)
    return ops.where(within, ops.floor(x * multiplier * 2.0**-8 + 0.5), x * ratio)


def requantize_mean(total, count, x, y):
    """Scales sums over space to a mean as XNNPACK does, every step in float32.

        scale = (x.scale / y.scale) * (1 / count)
        bias  = y.zero_point - count * x.zero_point * scale
        q     = sum(q_x) * scale + bias

    The zero points are within the rounded sum, so that a tie may fall otherwise than without them.
    Found by comparing LiteRT 2.3 with the orders in which this can be computed, at ties.

    Args:
        total: Float32 tensor of integers, sums of `q_x - x.zero_point`.
        count: Number of values in a sum.
        x: `QuantParams` of the input.
        y: `QuantParams` of the output.

    Returns:
        Float32 tensor of output steps `q - y.zero_point`, rounded.
    """
    count = ops.cast(count, "float32")
    scale = ops.cast(x.scale, "float32") / y.scale * (1.0 / count)
    shift = count * ops.cast(x.zero_point, "float32")
    zero_point = ops.cast(y.zero_point, "float32")
    return ops.round((total + shift) * scale + (zero_point - shift * scale)) - zero_point


def hard_swish(x, input_scale, output_scale):
    """Computes `x * relu6(x + 3) / 6` as LiteRT does, in 16-bit fixed point.

        m(a, b)  = trunc((a * b + 2**14 * sign(a * b)) / 2**15)            a rounded product
        h        = 128 * x
        gate     = (m(h, 16-bit significand of input_scale / 128 / (3 / 2**15)) + 2**15) >> 1
        product  = m(h, 16-bit significand of input_scale / 128 / output_scale)
        y        = trunc(gate * product / 2**15) * 2**exponent,            halves away from zero

    Source: LiteRT, `reference_ops::HardSwish`.

    Args:
        x: Float tensor of 8-bit integers less the zero point.
        input_scale: Float32 step of `x`.
        output_scale: Float32 step of the output.

    Returns:
        Float64 tensor of integers, to which the zero point is yet to be added.
    """
    fine_scale = ops.cast(input_scale, "float32") / 128.0
    to_output, output_exponent = _short_multiplier(fine_scale / output_scale)
    to_gate, gate_exponent = _short_multiplier(fine_scale / (3.0 / 2.0**15))
    saturate = lambda v: ops.clip(v, -(2.0**15), 2.0**15 - 1)  # noqa: E731
    fine = ops.cast(x, "float64") * 128.0
    left, right = ops.maximum(gate_exponent, 0.0), ops.maximum(-gate_exponent, 0.0)
    gate = saturate(fine * 2.0 ** ops.maximum(left - 1.0, 0.0))
    gate = _product(gate, to_gate)
    gate = saturate(gate * 2.0 ** ops.minimum(left, 1.0))
    gate = _round_half_away(gate / 2.0**right)
    gate = ops.floor((gate + 2.0**15) / 2.0)
    product = _truncate(gate * _product(fine, to_output) / 2.0**15)
    return _round_half_away(product * 2.0**output_exponent)


def _high_product(accumulator, multiplier):
    """Returns the upper half of the product with the significand, and the shift that remains."""
    significand, exponent = quantize_multiplier(multiplier)
    left = ops.maximum(exponent, _int64(0))
    product = ops.cast(accumulator, "int64") * _power_of_two(left) * significand
    return _rounding_shift(product, _int64(31)), ops.maximum(-exponent, _int64(0))


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


def _int64(value):
    return ops.convert_to_tensor(value, "int64")


def _round_half_away(x):
    return ops.sign(x) * ops.floor(ops.abs(x) + 0.5)


def _power_of_two(exponent):
    return ops.cast(2.0 ** ops.cast(exponent, "float64"), "int64")


def _rounding_shift(x, bits):
    """`x / 2**bits` to nearest, halves upward."""
    divisor = _power_of_two(bits)
    return ops.floor_divide(x + ops.floor_divide(divisor, _int64(2)), divisor)
