"""Plain low-bit rows <-> real values: the ops where they are built, the reference elsewhere."""

import numpy as np
import tensorflow as tf

from tfquant.lowbit import library
from tfquant.numerics import reference


def dequantize(
    packed,
    scale,
    *,
    num_bits,
    columns,
    row_group=1,
    column_group=1,
    zero_point=None,
    codebook=None,
    dtype="float32",
):
    """Turns plain packed rows (`numerics.packing.pack`) into real values.

        x = scale * (v - zero_point)   or   x = scale * codebook[v]

    Args:
        packed: `uint8` tensor `[rows, bytes]`.
        scale: Float tensor `[ceil(rows / row_group), ceil(columns / column_group)]`, positive.
        num_bits: 8, 4, 2 or 1.
        columns: Values in a row.
        row_group: Rows that share a scale.
        column_group: Columns that share a scale.
        zero_point: Like `scale`, in [0, 2^num_bits - 1]; without it `2^(num_bits-1)`, that of
            signed symmetric values.
        codebook: Float tensor of `2^num_bits` values, or `None`.
        dtype: `"float32"` or `"bfloat16"`.

    Returns:
        Tensor `[rows, columns]`.
    """
    empty = tf.zeros((0,), tf.float32)
    packed = tf.convert_to_tensor(packed, tf.uint8)
    scale = tf.convert_to_tensor(scale, tf.float32)
    ops = library.ops()
    settings = {"num_bits": num_bits, "row_group": row_group, "column_group": column_group}
    if ops is not None:
        return ops.tfquant_dequantize(
            packed,
            scale,
            empty if zero_point is None else tf.cast(zero_point, tf.float32),
            empty if codebook is None else tf.cast(codebook, tf.float32),
            T=tf.as_dtype(dtype),
            columns=columns,
            **settings,
        )

    def function(packed, scale, *rest):
        extra = dict(zip(given, rest, strict=True))
        return reference.dequantize(packed, scale, columns=columns, **settings, **extra)

    given = {"zero_point": zero_point, "codebook": codebook}
    given = {name: tf.cast(x, tf.float32) for name, x in given.items() if x is not None}
    real = tf.numpy_function(function, [packed, scale, *given.values()], tf.float32)
    return tf.cast(tf.ensure_shape(real, (packed.shape[0], columns)), dtype)


def quantize_pack(x, scale, *, num_bits, row_group=1, column_group=1, zero_point=None):
    """Quantizes rows of real values and packs them; the inverse of `dequantize`.

        v = clip(round(x / scale) + zero_point, 0, 2^num_bits - 1)

    Args:
        x: float32 tensor `[rows, columns]`.
        scale: See `dequantize`.
        num_bits: 8, 4, 2 or 1.
        row_group: Rows that share a scale.
        column_group: Columns that share a scale.
        zero_point: See `dequantize`.

    Returns:
        `uint8` tensor `[rows, bytes]`.
    """
    x = tf.convert_to_tensor(x, tf.float32)
    scale = tf.convert_to_tensor(scale, tf.float32)
    ops = library.ops()
    settings = {"num_bits": num_bits, "row_group": row_group, "column_group": column_group}
    if ops is not None:
        zero = tf.zeros((0,)) if zero_point is None else tf.cast(zero_point, tf.float32)
        return ops.tfquant_quantize_pack(x, scale, zero, **settings)

    def function(x, scale):
        return reference.quantize(x, scale, zero_point=zero_point, **settings).astype(np.uint8)

    packed = tf.numpy_function(function, [x, scale], tf.uint8)
    width = None if x.shape[1] is None else -(-x.shape[1] * num_bits // 8)
    return tf.ensure_shape(packed, (x.shape[0], width))
