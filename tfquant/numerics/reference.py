"""Slow integer matmul: the answer every kernel must give.

The C++ twin is `custom_ops/core/reference_matmul.h`. Integer parts are exact; float parts are in
double precision, so that a kernel differs from this by its own float rounding only.
"""

import numpy as np

from tfquant.numerics import packing

ACTIVATIONS = ("float", "per_row", "per_group", "static")
FUSED = ("linear", "relu", "relu6", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")
_SMALLEST = np.finfo(np.float32).tiny


def quantize_rows(x):
    """Quantizes each row to 8 bits, symmetric and narrow, with one scale for the last axis.

        scale = f32(absmax / 127),   q = rne(f32(x * f32(1 / scale)))

    `rne` rounds to nearest, ties to even; q lies in [-127, 127]. A scale below the smallest normal
    float counts as zero, and so do the integers under it. A row with Inf or NaN has a NaN scale.

    Args:
        x: Float array.

    Returns:
        `(q, scale)`: int8 of the shape of `x`, float32 without its last axis.
    """
    x = np.asarray(x, np.float32)
    finite = np.isfinite(x).all(axis=-1)
    absmax = np.where(finite, np.abs(x).max(axis=-1, initial=0), 0).astype(np.float32)
    scale = absmax / np.float32(127)
    scale = np.where(scale < _SMALLEST, np.float32(0), scale)
    safe = np.where(scale > 0, scale, np.float32(1))
    inverse = np.where(scale > 0, np.float32(1) / safe, np.float32(0)).astype(np.float32)
    clean = np.where(finite[..., None], x, np.float32(0))
    q = np.rint(clean * inverse[..., None]).astype(np.int8)
    return q, np.where(finite, scale, np.float32(np.nan)).astype(np.float32)


def quantize_static(x, scale, zero_point):
    """Quantizes to 8 bits with a known scale and zero point.

        q = clip(rne(f32(x * f32(1 / scale))) + zero_point, -128, 127)

    Args:
        x: Float array.
        scale: Positive float.
        zero_point: Integer in [-128, 127].

    Returns:
        int8 array of the shape of `x`.
    """
    inverse = np.float32(1) / np.float32(scale)
    with np.errstate(over="ignore"):
        steps = np.clip(np.asarray(x, np.float32) * inverse, -512, 512)
    steps = np.nan_to_num(steps, nan=0.0)
    return np.clip(np.rint(steps) + zero_point, -128, 127).astype(np.int8)


def lowbit_matmul(
    x,
    q,
    scale,
    *,
    num_bits,
    group_size=0,
    activations="per_row",
    x_scale=1.0,
    zero_point=0,
    bias=None,
    fused="linear",
):
    """Multiplies rows of real values with low-bit weights.

    With `x_q[m, k]` the integers of the activations and `x_scale[m, g]` their scale, for the group
    g that k lies in:

        sum[m, n, g] = sum over k in g of (x_q[m, k] - zero_point) * q[k, n]
        y[m, n] = fused(sum over g of sum[m, n, g] * x_scale[m, g] * scale[g, n] + bias[n])

    `activations` chooses the integers: `"per_row"` and `"per_group"` as in `quantize_rows`, over
    the row or over each group of it; `"static"` as in `quantize_static`; `"float"` uses x as it is.
    Inf or NaN in a row makes its whole result NaN, except with `"float"`, where they spread as in
    any float matmul.

    With 1-bit weights x counts by its sign alone, -1 where `x < 0` and +1 elsewhere, and
    `activations` is ignored.

    Args:
        x: Float array `[M, K]`.
        q: Integer array `[K, N]`.
        scale: Float array `[groups, N]` (one group per channel).
        num_bits: 8, 4, 2 or 1.
        group_size: Values of k that share a scale; 0 is all of them.
        activations: One of `ACTIVATIONS`.
        x_scale: Scale of the activations, `"static"` only.
        zero_point: Zero point of the activations, `"static"` only.
        bias: Float array `[N]`, or `None`.
        fused: One of `FUSED`.

    Returns:
        float64 array `[M, N]`.
    """
    x = np.asarray(x, np.float32)
    q = np.asarray(q)
    k, n = q.shape
    scale = np.asarray(scale, np.float64).reshape(-1, n)
    if num_bits == 1:
        y = np.where(x < 0, -1.0, 1.0) @ q.astype(np.float64) * scale[0]
    else:
        depth = group_size or k
        x_q, scale_of_x, zero = _activations(x, depth, activations, x_scale, zero_point)
        y = np.zeros((len(x), n))
        for g, start in enumerate(range(0, k, depth)):
            part = slice(start, start + depth)
            # Float64 holds these integers exactly.
            sums = (x_q[:, part] - zero) @ q[part].astype(np.float64)
            y += sums * scale_of_x[:, g, None] * scale[g]
    if bias is not None:
        y = y + np.asarray(bias, np.float64)
    return fuse(y, fused)


def lowbit_matmul_bound(x, q, scale, *, num_bits, group_size=0, bias=None, **settings):
    """How far a float32 kernel may be from `lowbit_matmul` before the fused function.

    Every term of a sum of t float32 terms is rounded at most t + 3 times, so the error is at most
    `(t + 3) * 2^-24` times the sum of magnitudes; t is the number of groups with integer
    activations and K with float ones. A zero point adds one term as large as the weights' sum.

    Returns:
        float64 array `[M, N]`.
    """
    x = np.nan_to_num(np.asarray(x, np.float64), posinf=0, neginf=0)
    q = np.asarray(q)
    k, n = q.shape
    depth = group_size or k
    scale = np.asarray(scale, np.float64).reshape(-1, n)
    if num_bits == 1:
        terms, magnitude = 1, np.full((len(x), n), float(k)) * scale[0]
    else:
        weight = np.abs(q.astype(np.float64)) * np.repeat(scale, depth, axis=0)[:k]
        terms = k if settings.get("activations") == "float" else -(-k // depth)
        # Rounding to integers moves x by half a step of the row; clipping only shrinks it.
        largest = np.abs(x).max(axis=1, initial=0)[:, None]
        magnitude = (np.abs(x) + largest / 127) @ weight
        if settings.get("activations") == "static":
            magnitude += 384 * settings.get("x_scale", 1.0) * weight.sum(axis=0)
    if bias is not None:
        magnitude = magnitude + np.abs(bias)
    return (terms + 4) * 2.0**-24 * magnitude + 1e-37


def fuse(y, fused):
    """Applies one of the functions `FUSED`, in double precision.

    Raises:
        ValueError: If there is no such function.
    """
    if fused not in FUSED:
        raise ValueError(f"`fused` must be one of {FUSED}. Received: fused={fused!r}.")
    with np.errstate(over="ignore", invalid="ignore"):
        if fused == "relu":
            return np.maximum(y, 0)
        if fused == "relu6":
            return np.clip(y, 0, 6)
        if fused == "gelu":
            return 0.5 * y * (1 + _erf(y * np.sqrt(0.5)))
        if fused == "gelu_tanh":
            return 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        if fused == "silu":
            return y / (1 + np.exp(-y))
        if fused == "sigmoid":
            return 1 / (1 + np.exp(-y))
        if fused == "tanh":
            return np.tanh(y)
    return y


def dequantize(
    packed, scale, *, num_bits, columns, row_group=1, column_group=1, zero_point=None, codebook=None
):
    """Turns plain packed values (`packing.pack`) into real ones.

        x = scale * (v - zero_point)   or   x = scale * codebook[v]

    Args:
        packed: `uint8` array `[rows, bytes]`.
        scale: Float array `[ceil(rows / row_group), ceil(columns / column_group)]`.
        num_bits: 8, 4, 2 or 1.
        columns: Values in a row.
        row_group: Rows that share a scale.
        column_group: Columns that share a scale.
        zero_point: Like `scale`; without it `2**(num_bits-1)`.
        codebook: Float array of `2**num_bits` values, or `None`.

    Returns:
        float32 array `[rows, columns]`.
    """
    v = packing.unpack(packed, num_bits, columns)
    rows = len(v)
    spread = _spread(scale, rows, columns, row_group, column_group)
    if codebook is not None:
        return spread * np.asarray(codebook, np.float32)[v]
    if zero_point is None:
        return spread * (v.astype(np.float32) - np.float32(2 ** (num_bits - 1)))
    return spread * (
        v.astype(np.float32) - _spread(zero_point, rows, columns, row_group, column_group)
    )


def quantize(x, scale, *, num_bits, row_group=1, column_group=1, zero_point=None):
    """Quantizes real rows and packs them (`packing.pack`); the inverse of `dequantize`.

        v = clip(rne(x / scale) + zero_point, 0, 2^num_bits - 1)

    NaN becomes the zero point.

    Returns:
        `uint8` array `[rows, bytes]`.
    """
    x = np.asarray(x, np.float32)
    rows, columns = x.shape
    zero = np.float32(2 ** (num_bits - 1))
    if zero_point is not None:
        zero = _spread(zero_point, rows, columns, row_group, column_group)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(x / _spread(scale, rows, columns, row_group, column_group))
        v = np.clip(np.where(np.isnan(steps), 0, steps) + zero, 0, 2**num_bits - 1)
    return packing.pack(v.astype(np.uint8), num_bits)


def _activations(x, depth, activations, x_scale, zero_point):
    """Integers as float64 `[M, K]`, scales `[M, groups]` and the zero point."""
    m, k = x.shape
    groups = -(-k // depth)
    if activations == "float":
        return x.astype(np.float64), np.ones((m, groups)), 0
    if activations == "per_row":
        x_q, scale = quantize_rows(x)
        return x_q.astype(np.float64), np.repeat(scale[:, None], groups, axis=1), 0
    if activations == "per_group":
        padded = np.pad(x, ((0, 0), (0, groups * depth - k))).reshape(m, groups, depth)
        x_q, scale = quantize_rows(padded)
        bad = np.isnan(scale).any(axis=1, keepdims=True)
        return x_q.reshape(m, -1)[:, :k].astype(np.float64), np.where(bad, np.nan, scale), 0
    if activations == "static":
        scale = np.where(np.isfinite(x).all(axis=1), np.float32(x_scale), np.float32(np.nan))
        x_q = quantize_static(x, x_scale, zero_point)
        return x_q.astype(np.float64), np.repeat(scale[:, None], groups, axis=1), zero_point
    raise ValueError(
        f"`activations` must be one of {ACTIVATIONS}. Received: activations={activations!r}."
    )


def _spread(scale, rows, columns, row_group, column_group):
    scale = np.asarray(scale, np.float32)
    by_row = np.repeat(scale, row_group, axis=0)[:rows] if len(scale) * row_group >= rows else scale
    return np.repeat(by_row, column_group, axis=1)[:, :columns]


def _erf(x):
    """The error function, to 1e-15, from its series and its continued fraction."""
    x = np.asarray(x, np.float64)
    small = np.where(np.abs(x) < 3, x, 0)
    term = total = small
    for i in range(1, 60):
        term = -term * small * small / i
        total = total + term / (2 * i + 1)
    series = 2 / np.sqrt(np.pi) * total
    large = np.where(np.abs(x) < 3, 3, np.abs(x))
    fraction = np.zeros_like(large)
    for i in range(60, 0, -1):
        fraction = (i / 2) / (large + fraction)
    tail = np.exp(-large * large) / np.sqrt(np.pi) / (large + fraction)
    return np.where(np.abs(x) < 3, series, np.sign(x) * (1 - tail))
