"""4-, 2- and 1-bit values <-> bytes: the packed formats, drawn, in numpy.

The same drawings are in `custom_ops/core/blocks.h`; the C++ code must produce the same bytes.

**Plain.** Row-major, lowest bits first, every row starting on a byte. Values are unsigned.

    8 bits   byte i = v[i]
    4 bits   byte i = v[2i] | v[2i+1] << 4
    2 bits   byte i = v[4i] | v[4i+1] << 2 | v[4i+2] << 4 | v[4i+3] << 6
    1 bit    byte i = v[8i] | v[8i+1] << 1 | ... | v[8i+7] << 7

**Matmul weights** `q[K, N]` of 8, 4 or 2 bits. Columns are cut into panels of 16 and K into blocks
of 32; a group is `group_size / 32` blocks followed by its 16 half-precision scales:

    | header, 64 bytes | panel 0 | panel 1 | ... | column_scale f32[N'] | column_sum f32[N'] |
    panel = | group | group | ...            group = | block | ... | block | 16 x f16 scale |
    panel = | block | block | ...            (per channel: no scales between the blocks)

A block is `num_bits` rows of 64 bytes; column c owns bytes 4c .. 4c+3 of a row, and byte b of them
holds k = 4s + b for each step s that the row covers:

    8 bits   row r   byte = v[4r+b]                                        v = q + 2^(num_bits-1)
    4 bits   row r   byte = v[8r+b] | v[8r+4+b] << 4
    2 bits   row r   byte = v[16r+b] | v[16r+4+b] << 2 | v[16r+8+b] << 4 | v[16r+12+b] << 6

K is padded to whole groups (blocks when per channel) and N to N', whole panels, with q = 0.

    weight[k, n] = q[k, n] * group_scale[k // group_size, n] * column_scale[n]

With groups, `column_scale` is a power of two, so that the f16 scales lie in their best range.
`column_sum[n]` is the sum over k of `q * group_scale`.

**Matmul weights of 1 bit** (-1 and +1; a set bit is -1): panels of 64 columns, row r of 64 bytes
holds k = 8r .. 8r+7 of column c in byte c; K is padded to a multiple of 32 with zero bits.

    | header | panel 0 | panel 1 | ... | column_scale f32[N'] |
"""

import struct

import numpy as np

MAGIC = 0x31514654
HEADER = struct.Struct("<Iiqqq32x")
PANEL_COLUMNS = 16
BLOCK_DEPTH = 32
BINARY_PANEL_COLUMNS = 64
BINARY_DEPTH = 32
GROUP_SIZES = (0, 32, 64, 128)
MAX_DEPTH = 131071  # s8 x s8 products that an int32 holds for certain


def pack(values, num_bits):
    """Packs unsigned values, row by row, into bytes (the plain format).

    Args:
        values: Integer array whose last axis is packed; values below `2**num_bits`.
        num_bits: 8, 4, 2 or 1.

    Returns:
        `uint8` array; the last axis is shorter by `8 / num_bits`, rounded up.

    Raises:
        ValueError: If `num_bits` is something else or a value does not fit.

    Example:

    >>> pack([[1, 2, 3]], 4)
    array([[33,  3]], dtype=uint8)
    """
    _check_num_bits(num_bits)
    values = np.asarray(values)
    if values.size and (values.min() < 0 or values.max() >= 2**num_bits):
        raise ValueError(
            f"Values must lie in [0, {2**num_bits - 1}]. "
            f"Received: values from {values.min()} to {values.max()}."
        )
    per_byte = 8 // num_bits
    columns = values.shape[-1]
    width = -(-columns // per_byte)
    padding = [(0, 0)] * (values.ndim - 1) + [(0, width * per_byte - columns)]
    padded = np.pad(values.astype(np.uint8), padding)
    parts = padded.reshape(*values.shape[:-1], width, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * num_bits
    return np.bitwise_or.reduce(parts << shifts.astype(np.uint8), axis=-1, dtype=np.uint8)


def unpack(packed, num_bits, columns):
    """Unpacks what `pack` packed.

    Args:
        packed: `uint8` array.
        num_bits: 8, 4, 2 or 1.
        columns: Length of the last axis of the result.

    Returns:
        `uint8` array of values below `2**num_bits`.

    Raises:
        ValueError: If the last axis of `packed` does not fit `columns`.
    """
    _check_num_bits(num_bits)
    packed = np.asarray(packed, np.uint8)
    per_byte = 8 // num_bits
    if packed.shape[-1] != -(-columns // per_byte):
        raise ValueError(
            f"The last axis must hold {-(-columns // per_byte)} bytes for columns={columns}, "
            f"num_bits={num_bits}. Received: {packed.shape[-1]} bytes."
        )
    shifts = np.arange(per_byte, dtype=np.uint8) * num_bits
    parts = (packed[..., None] >> shifts.astype(np.uint8)) & np.uint8(2**num_bits - 1)
    return parts.reshape(*packed.shape[:-1], -1)[..., :columns]


def matmul_shape(num_bits, group_size, k, n):
    """Checks the numbers and returns `(padded_k, padded_n, groups, panel_bytes, total_bytes)`.

    Raises:
        ValueError: If the packed format has no such weights.
    """
    _check_num_bits(num_bits)
    if group_size not in GROUP_SIZES:
        raise ValueError(
            "`group_size` must be 32, 64, 128 or 0 (per channel). "
            f"Received: group_size={group_size}."
        )
    if num_bits == 1 and group_size:
        raise ValueError(
            "1-bit weights have one scale per channel: `group_size` must be 0. "
            f"Received: group_size={group_size}."
        )
    if not (0 < k < 2**31 - 1 and 0 < n <= 2**31):
        raise ValueError(
            f"The weights must have 1 to 2^31 rows and columns. Received: k={k}, n={n}."
        )
    if group_size == 0 and num_bits != 1 and k > MAX_DEPTH:
        raise ValueError(
            f"Per-channel weights may have at most {MAX_DEPTH} rows, or the int32 accumulator "
            f"could overflow; use a group size. Received: k={k}."
        )
    if num_bits == 1:
        padded_k, padded_n = _round_up(k, BINARY_DEPTH), _round_up(n, BINARY_PANEL_COLUMNS)
        panel = padded_k // 8 * BINARY_PANEL_COLUMNS
        total = HEADER.size + padded_n // BINARY_PANEL_COLUMNS * panel + 4 * padded_n
        return padded_k, padded_n, 1, panel, total
    padded_k, padded_n = _round_up(k, group_size or BLOCK_DEPTH), _round_up(n, PANEL_COLUMNS)
    groups = padded_k // group_size if group_size else 1
    panel = padded_k * PANEL_COLUMNS * num_bits // 8 + (groups * 32 if group_size else 0)
    total = HEADER.size + padded_n // PANEL_COLUMNS * panel + 8 * padded_n
    return padded_k, padded_n, groups, panel, total


def split_scale(scale):
    """Splits group scales into what the format stores.

        column_scale = 2^floor(log2(max over groups of scale))
        group_scale = f16(scale / column_scale)

    Args:
        scale: Positive float array `[groups, N]`.

    Returns:
        `(group_scale, column_scale)`: float16 `[groups, N]` and float32 `[N]`.
    """
    scale = np.asarray(scale, np.float32)
    exponent = np.maximum(np.frexp(scale.max(axis=0))[1] - 1, -126)
    column_scale = np.ldexp(np.float32(1), exponent).astype(np.float32)
    return (scale / column_scale).astype(np.float16), column_scale


def pack_matmul(q, scale, *, num_bits, group_size=0):
    """Packs matmul weights into the panel format.

    Args:
        q: Integer array `[K, N]` with `-2**(num_bits-1) <= q < 2**(num_bits-1)`; for 1 bit, -1
            and +1.
        scale: Positive finite float array `[N]` or `[1, N]` per channel, `[groups, N]` with groups,
            where `groups = ceil(K / group_size)`.
        num_bits: 8, 4, 2 or 1.
        group_size: 32, 64, 128, or 0 for one scale per channel.

    Returns:
        `uint8` array of one axis.

    Raises:
        ValueError: If a shape, a value or a scale is out of bounds.
    """
    q = np.asarray(q)
    if q.ndim != 2:
        raise ValueError(f"`q` must have the shape [K, N]. Received: shape {q.shape}.")
    k, n = q.shape
    padded_k, padded_n, groups, panel, total = matmul_shape(num_bits, group_size, k, n)
    scale = np.asarray(scale, np.float32).reshape(-1, n) if np.size(scale) else np.zeros((0, n))
    if scale.shape[0] != groups:
        raise ValueError(
            f"`scale` must have the shape ({groups}, {n}). Received: shape {scale.shape}."
        )
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        bad = scale[~(np.isfinite(scale) & (scale > 0))][0]
        raise ValueError(f"`scale` must be positive and finite. Received: {bad}.")
    _check_range(q, num_bits)

    out = np.zeros(total, np.uint8)
    out[: HEADER.size] = np.frombuffer(HEADER.pack(MAGIC, num_bits, group_size, k, n), np.uint8)
    panels = out[HEADER.size : HEADER.size + padded_n // _panel_columns(num_bits) * panel]
    panels = panels.reshape(-1, panel)
    tail = out[HEADER.size + panels.size :].view(np.float32)
    if num_bits == 1:
        bits = np.zeros((padded_k, padded_n), np.uint8)
        bits[:k, :n] = q < 0
        rows = np.packbits(bits.reshape(-1, 8, padded_n), axis=1, bitorder="little")[:, 0]
        rows = rows.reshape(padded_k // 8, -1, BINARY_PANEL_COLUMNS).transpose(1, 0, 2)
        panels[:] = rows.reshape(panels.shape)
        tail[:n] = scale[0]
        return out

    offset = 2 ** (num_bits - 1)
    v = np.full((padded_k, padded_n), offset, np.uint8)
    v[:k, :n] = (q.astype(np.int16) + offset).astype(np.uint8)
    parts = 8 // num_bits
    # k = block, row, part, byte; n = panel, column
    v = v.reshape(-1, num_bits, parts, 4, padded_n // PANEL_COLUMNS, PANEL_COLUMNS)
    shifts = (np.arange(parts) * num_bits).astype(np.uint8).reshape(1, 1, -1, 1, 1, 1)
    rows = np.bitwise_or.reduce(v << shifts, axis=2, dtype=np.uint8)
    rows = rows.transpose(3, 0, 1, 4, 2)  # panel, block, row, column, byte
    column_scale = np.zeros(padded_n, np.float32)
    column_sum = np.zeros(padded_n, np.float64)
    if group_size:
        group_scale, column_scale[:n] = split_scale(scale)
        halves = np.zeros((groups, padded_n), np.float16)
        halves[:, :n] = group_scale
        blocks = rows.reshape(len(panels), groups, -1)
        halves_of_panel = halves.reshape(groups, -1, PANEL_COLUMNS).transpose(1, 0, 2)
        both = [blocks, np.ascontiguousarray(halves_of_panel).view(np.uint8)]
        panels[:] = np.concatenate(both, axis=2).reshape(panels.shape)
        starts = np.arange(0, k, group_size)
        sums = np.add.reduceat(q.astype(np.int64), starts, axis=0)
        for g in range(groups):  # in order: the sum is rounded once, at the end
            column_sum[:n] += group_scale[g].astype(np.float64) * sums[g]
    else:
        column_scale[:n] = scale[0]
        panels[:] = rows.reshape(panels.shape)
        column_sum[:n] = q.astype(np.int64).sum(axis=0)
    tail[:padded_n] = column_scale
    tail[padded_n:] = column_sum.astype(np.float32)
    return out


def unpack_matmul(packed, *, num_bits, group_size, k, n):
    """Unpacks what `pack_matmul` packed.

    Args:
        packed: `uint8` array of one axis.
        num_bits: 8, 4, 2 or 1.
        group_size: 32, 64, 128, or 0 for one scale per channel.
        k: Rows of the weights.
        n: Columns of the weights.

    Returns:
        `(q, scale)`: int8 `[K, N]`, and float32 `[groups, N]` as the kernels see them, which with
        groups is the scale that was given, rounded to half precision.

    Raises:
        ValueError: If the buffer is not of this layout.
    """
    padded_k, padded_n, groups, panel, total = matmul_shape(num_bits, group_size, k, n)
    packed = np.ascontiguousarray(packed, np.uint8)
    if packed.shape != (total,):
        raise ValueError(
            f"`weights` must hold {total} bytes for k={k}, n={n}, num_bits={num_bits}, "
            f"group_size={group_size}. Received: {packed.size} bytes."
        )
    if HEADER.unpack(packed[: HEADER.size].tobytes()) != (MAGIC, num_bits, group_size, k, n):
        raise ValueError(
            f"`weights` must be packed with k={k}, n={n}, num_bits={num_bits}, "
            f"group_size={group_size}. Received: a buffer whose header says otherwise."
        )
    columns = _panel_columns(num_bits)
    panels = packed[HEADER.size : HEADER.size + padded_n // columns * panel].reshape(-1, panel)
    tail = packed[HEADER.size + panels.size :].copy().view(np.float32)
    if num_bits == 1:
        rows = panels.reshape(len(panels), -1, columns).transpose(1, 0, 2).reshape(-1, padded_n)
        bits = np.unpackbits(rows[:, None], axis=1, bitorder="little").reshape(padded_k, padded_n)
        return (1 - 2 * bits[:k, :n].astype(np.int8)), tail[:n].reshape(1, n)

    group_bytes = panel // groups
    rows_bytes = group_bytes - (32 if group_size else 0)
    by_group = panels.reshape(len(panels), groups, group_bytes)
    rows = by_group[:, :, :rows_bytes].reshape(len(panels), -1, num_bits, PANEL_COLUMNS, 4)
    parts = 8 // num_bits
    shifts = (np.arange(parts) * num_bits).astype(np.uint8).reshape(-1, 1, 1, 1, 1, 1)
    v = (rows[None] >> shifts) & np.uint8(2**num_bits - 1)
    v = v.transpose(2, 3, 0, 5, 1, 4).reshape(padded_k, padded_n)  # k: block, row, part, byte
    q = (v.astype(np.int16) - 2 ** (num_bits - 1)).astype(np.int8)[:k, :n]
    if not group_size:
        return q, tail[:n].reshape(1, n)
    halves = np.ascontiguousarray(by_group[:, :, rows_bytes:]).view(np.float16)
    group_scale = halves.transpose(1, 0, 2).reshape(groups, padded_n)[:, :n]
    return q, group_scale.astype(np.float32) * tail[:n]


def _check_num_bits(num_bits):
    if num_bits not in (8, 4, 2, 1):
        raise ValueError(f"`num_bits` must be 8, 4, 2 or 1. Received: num_bits={num_bits}.")


def _check_range(q, num_bits):
    if num_bits == 1:
        if not np.isin(q, (-1, 1)).all():
            raise ValueError(
                f"1-bit values must be -1 or 1. Received: {q[~np.isin(q, (-1, 1))][0]}."
            )
        return
    low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    if q.min() < low or q.max() > high:
        bad = q.min() if q.min() < low else q.max()
        raise ValueError(f"Values must lie in [{low}, {high}]. Received: {bad}.")


def _panel_columns(num_bits):
    return BINARY_PANEL_COLUMNS if num_bits == 1 else PANEL_COLUMNS


def _round_up(value, step):
    return -(-value // step) * step
