"""Levels that are not evenly spaced: fixed tables of them, and those found from values."""

import statistics

import numpy as np

# Values times levels that are looked at together.
BLOCK = 2**22

# Lloyd's iterations; nearly all have stopped by themselves before.
ITERATIONS = 50


def normal_float(num_bits: int) -> np.ndarray:
    """Returns levels at equal shares of a normal distribution, from -1 to 1, zero among them.

    At 4 bits NF4 (Dettmers et al. 2023, arXiv:2305.14314, appendix E): half of the levels are
    negative with zero, one more is positive.

    Args:
        num_bits: 2 to 8.

    Returns:
        Float32 array of `2**num_bits` levels, sorted.

    Example:

    >>> normal_float(4)[[0, 1, 7, 14]].round(4).tolist()
    [-1.0, -0.6962, 0.0, 0.723]
    """
    _check_num_bits(num_bits, 2)
    half, whole = 2 ** (num_bits - 1), 2**num_bits
    # The outermost share is the mean of what the two halves would leave outside.
    top = 1 - (1 / (2 * (whole - 1)) + 1 / (2 * whole)) / 2
    quantile = statistics.NormalDist().inv_cdf
    shares = lambda count: np.linspace(top, 0.5, count + 1)[:-1]  # noqa: E731
    levels = [*map(quantile, shares(half)), 0.0, *(-quantile(s) for s in shares(half - 1))]
    levels = np.sort(np.array(levels))
    return (levels / levels.max()).astype(np.float32)


def powers_of_two(num_bits: int) -> np.ndarray:
    """Returns `0` and `+-2**-i` for `i` from 0 on: a product is a shift.

    Args:
        num_bits: 2 to 8.

    Returns:
        Float32 array of `2**num_bits - 1` levels, sorted.

    Example:

    >>> powers_of_two(3).tolist()
    [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """
    _check_num_bits(num_bits, 2)
    return _both_signs(2.0 ** -np.arange(2 ** (num_bits - 1) - 1))


def additive_powers_of_two(num_bits: int) -> np.ndarray:
    """Returns sums of powers of two, spaced more evenly at the ends than `powers_of_two`.

        level = +-sum over i < n of p_i,   p_i in {0, 2**-i, 2**-(i + n), 2**-(i + 2 n)}

    divided by the largest, with `n` terms of 2 bits each for the bits of a magnitude, the last of 1
    bit where they are odd (Li et al. 2020, arXiv:1909.13144, equation 5).

    Args:
        num_bits: 2 to 8.

    Returns:
        Float32 array of `2**num_bits - 1` levels, sorted.
    """
    _check_num_bits(num_bits, 2)
    terms = -(-(num_bits - 1) // 2)
    sums = np.zeros(1)
    for i in range(terms):
        bits = min(2, num_bits - 1 - 2 * i)
        term = [0.0, *(2.0 ** -(i + j * terms) for j in range(2**bits - 1))]
        sums = np.add.outer(sums, term).reshape(-1)
    return _both_signs(sums[sums > 0] / sums.max())


def _both_signs(positive):
    positive = np.sort(positive)
    return np.concatenate([-positive[::-1], [0.0], positive]).astype(np.float32)


# By name; each a function of the number of bits. `k_means` finds its own from values.
TABLES = {
    "nf": normal_float,
    "power_of_two": powers_of_two,
    "apot": additive_powers_of_two,
}


def nearest_level(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Returns the index of the level that is nearest to each value, the lower one at ties.

    Args:
        x: `[..., n]`.
        levels: `[..., L]`, sorted along the last axis, or a vector for all.

    Returns:
        Integers of the shape of `x`.
    """
    if levels.ndim == 1:
        return np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
    middles = ((levels[..., 1:] + levels[..., :-1]) / 2)[..., None, :]
    return (x[..., None] > middles).sum(axis=-1)


def k_means(x: np.ndarray, count: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the levels of each row with the least squared error, as far as Lloyd's steps find.

        minimize sum_i h_i (x_i - level(x_i))^2

    The start are the middles of equal shares of the sorted values; nothing is drawn by chance.
    Where a row has no more than `count` different values, these are the levels, and nothing is lost
    (Han et al. 2016, arXiv:1510.00149, section 3).

    Args:
        x: `[rows, n]`.
        count: Number of levels.
        weights: `h`, not negative, of the shape of `x`; `None` for 1.

    Returns:
        Array of the dtype of `x`, `[rows, count]`, sorted; the last is repeated where there are
        fewer.

    Raises:
        ValueError: If there are no values, or `count` is not positive.
    """
    x = np.asarray(x)
    if x.ndim != 2 or not x.shape[1] or count < 1:
        raise ValueError(
            "Levels are found from rows of values, one level or more. Received: shape "
            f"{x.shape}, count={count}."
        )
    weights = np.ones_like(x) if weights is None else np.asarray(weights, x.dtype)
    found = np.empty((len(x), count), x.dtype)
    size = max(1, BLOCK // (x.shape[1] * count))
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        found[rows] = _lloyd(x[rows], weights[rows], count)
    return found


def _lloyd(x, weights, count):
    levels = np.empty((len(x), count), x.dtype)
    order = np.sort(x, axis=1)
    places = ((np.arange(count) + 0.5) * (x.shape[1] / count)).astype(int)
    for row, values in enumerate(order):
        different = np.unique(values)
        few = len(different) <= count
        levels[row] = _padded(different, count) if few else values[places]
    rows = np.arange(len(x))[:, None]
    index = None
    for _ in range(ITERATIONS):
        before, index = index, nearest_level(x, levels)
        if before is not None and (before == index).all():
            break
        flat = (rows * count + index).reshape(-1)
        total = lambda v, flat=flat: np.bincount(  # noqa: E731
            flat, np.asarray(v, np.float64).reshape(-1), len(x) * count
        ).reshape(-1, count)
        mass, sums = total(weights), total(weights * x)
        # A level without values stays where it is.
        moved = np.where(mass > 0, sums / np.where(mass > 0, mass, 1.0), levels)
        levels = np.sort(moved, axis=1).astype(x.dtype)
    return levels


def _padded(values, count):
    return np.concatenate([values, np.repeat(values[-1:], count - len(values))])


def _check_num_bits(num_bits, least):
    if not isinstance(num_bits, int) or not least <= num_bits <= 8:
        raise ValueError(
            f"A table of levels has {least} to 8 bits. Received: num_bits={num_bits!r}."
        )
