"""Integers that a kernel finds when it runs, on a grid that it finds for each vector or row.

The range of the values holds 0 and is spread over -128 to 127. Two kernels of LiteRT do so, and
differ where a value lies halfway between two integers, or nearly.
"""

from keras import ops

from tfquant.numerics.params import QuantParams

_LOW, _HIGH = -128.0, 127.0


def once(low, high, x):
    """Rounds as XNNPACK does: a factor in float32, ties to even.

        factor = 255 / (high - low)
        q = clip(rint(x * factor) + zero_point, -128, 127)

    Source: `xnn_qd8_asymmetric_quantization_params` of XNNPACK.

    Args:
        low: Least values, at most 0, float32; broadcasts against `x`.
        high: Greatest values, at least 0.
        x: Float32 tensor.

    Returns:
        Integers in float32, and `QuantParams` of the shape of `low`.
    """
    span = high - low
    # One division: the product of the span's inverse and 255 would round twice.
    factor = ops.where(span > 0, (_HIGH - _LOW) / ops.where(span > 0, span, 1.0), 1.0)
    from_low, from_high = _LOW - low * factor, _HIGH - high * factor
    below = (_LOW + low * factor) + (_HIGH + high * factor) > 0
    zero_point = ops.round(ops.clip(ops.where(below, from_low, from_high), _LOW, _HIGH))
    steps = ops.clip(ops.round(x * factor) + zero_point, _LOW, _HIGH)
    # Not the factor's inverse: graphs divide by the factor instead, and differ in the last bit.
    scale = ops.where(span > 0, span * (1.0 / (_HIGH - _LOW)), 1.0)
    return steps, QuantParams(scale, zero_point)


def twice(low, high, x):
    """Rounds as LiteRT's own kernels do: a step in float64, its inverse in float32, ties outward.

        scale = float32((high - low) / 255)
        q = clip(round(x * float32(1 / scale)) + zero_point, -128, 127)

    Source: `AsymmetricQuantizeFloats` of LiteRT.

    Args:
        low: Least values, at most 0, float32; broadcasts against `x`.
        high: Greatest values, at least 0.
        x: Float32 tensor.

    Returns:
        Integers in float32, and `QuantParams` of the shape of `low`.
    """
    low, high = (ops.cast(v, "float64") for v in (low, high))
    span = high - low
    exact = ops.where(span > 0, span, 255.0) / 255.0
    less, more = low / exact, high / exact
    nearer = -_LOW + ops.abs(less) < _HIGH + ops.abs(more)
    zero_point = ops.clip(ops.where(nearer, _LOW - less, _HIGH - more), _LOW, _HIGH)
    zero_point = ops.where(span > 0, _outward(zero_point), 0.0)
    scale, zero_point = ops.cast(exact, "float32"), ops.cast(zero_point, "float32")
    inverse = ops.cast(1.0 / ops.cast(scale, "float64"), "float32")
    steps = ops.clip(_outward(x * inverse) + zero_point, _LOW, _HIGH)
    return steps, QuantParams(scale, zero_point)


def _outward(x):
    """Rounds to the nearest integer, halves away from 0."""
    return ops.sign(x) * ops.floor(ops.abs(x) + 0.5)


ROUNDINGS = {"once": once, "twice": twice}
