"""`Moments`: what a linear layer reads, in two streams, as sums of products."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Moments:
    """Second moments of what a layer reads in the quantized and in the float model.

        hessian = cov(x, x),   cross = cov(x, x_float),   float_hessian = cov(x_float, x_float)

    over rows and positions. Means are taken off: a layer's bias gives them back. A layer with a
    kernel for each group of its channels has matrices of its own for each, `[groups, k, k]`.

    Attributes:
        count: Rows times positions.
        mean, float_mean: `[groups, k]`.
        hessian, cross, float_hessian: `[groups, k, k]`.
    """

    count: int
    mean: np.ndarray
    float_mean: np.ndarray
    hessian: np.ndarray
    cross: np.ndarray
    float_hessian: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether no value was NaN or infinite."""
        return all(np.isfinite(m).all() for m in (self.hessian, self.cross, self.float_hessian))

    @classmethod
    def of(cls, pairs) -> "Moments":
        """Returns the moments of pairs of arrays `[groups, count, k]`.

        Args:
            pairs: Iterable of `(x, x_float)`.

        Raises:
            ValueError: If there is no pair.
        """
        sums = None
        for x, y in pairs:
            product = lambda a, b: np.swapaxes(a, 1, 2) @ b  # noqa: E731
            squares = product(x, x), product(x, y), product(y, y)
            found = (x.shape[1], x.sum(1), y.sum(1), *squares)
            found = [np.asarray(v, np.float64) for v in found]
            sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
        if sums is None:
            raise ValueError("Moments are those of one batch or more. Received: none.")
        return cls.from_sums(*sums)

    @classmethod
    def from_sums(cls, count, x, y, *squares) -> "Moments":
        """Returns the moments of sums over `count` vectors."""
        mean, float_mean = x / count, y / count
        pairs = (mean, mean), (mean, float_mean), (float_mean, float_mean)
        centred = [
            square / count - _outer(*pair) for square, pair in zip(squares, pairs, strict=True)
        ]
        return cls(int(count), mean, float_mean, *centred)

    def raw(self) -> "Moments":
        """Returns these moments about zero, for a layer whose bias cannot give a mean back."""
        m, f = self.mean, self.float_mean
        squares = self.hessian, self.cross, self.float_hessian
        pairs = zip(squares, ((m, m), (m, f), (f, f)), strict=True)
        return Moments(self.count, m, f, *(square + _outer(*pair) for square, pair in pairs))

    def __add__(self, other: "Moments") -> "Moments":
        raw = self.raw(), other.raw()
        names = "mean", "float_mean", "hessian", "cross", "float_hessian"
        sums = [sum(m.count * getattr(m, name) for m in raw) for name in names]
        return Moments.from_sums(self.count + other.count, *sums)


def _outer(a, b):
    return a[:, :, None] * b[:, None, :]
