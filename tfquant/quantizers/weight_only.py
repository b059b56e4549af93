"""`WeightOnlyQuantizer`: arrays to integers and back, without a model."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops, tree

from tfquant.numerics import PerAxis, PerGroup, PerTensor, QuantSpec
from tfquant.numerics.codebooks import TABLES, k_means, nearest_level
from tfquant.quantizers.abs_max import AbsMax

# How integers stand for values.
GRIDS = ("symmetric", "asymmetric", "k_means", *TABLES)


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedArray:
    """An array as integers, and what they stand for.

        value = scale * integer                      symmetric
        value = scale * integer + minimum            asymmetric
        value = scale * codebook[integer]            levels

    Attributes:
        integers: Array of the shape of the weight; signed where symmetric, else from 0 on.
        scale: Float32 steps, of `scale_shape` of a weight quantizer: 1 along axes that share one,
            the number of groups along one that is cut into groups.
        minimum: Float32 array of the shape of `scale`, or `None`.
        codebook: Float32 levels, a vector for all or one for each step, `[*scale.shape, levels]`;
            or `None`.
        num_bits: Width of an integer when it is packed.
        granularity: What shares a step.
        dtype: Of the array it was made from.
    """

    integers: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None
    codebook: np.ndarray | None
    num_bits: int
    granularity: PerTensor | PerAxis | PerGroup
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.integers.shape

    @property
    def num_bytes(self) -> int:
        """Bytes of the integers, packed, and of what they stand for."""
        tables = [x for x in (self.scale, self.minimum, self.codebook) if x is not None]
        return -(-self.integers.size * self.num_bits // 8) + sum(x.nbytes for x in tables)

    def __repr__(self) -> str:
        return (
            f"QuantizedArray(shape={self.shape}, num_bits={self.num_bits}, "
            f"granularity={self.granularity}, num_bytes={self.num_bytes:,})"
        )


class WeightOnlyQuantizer:
    """Turns weights into integers of few bits and back: arrays in, arrays out.

    For a checkpoint, an optimizer's average, a file format of one's own; a model that is to run on
    integers goes through `quantize_model`, whose integers `"symmetric"` gives as well.

    Args:
        num_bits: 1 to 16 for evenly spaced grids (symmetric ones from 2), 2 to 8 for tables.
        grid: `"symmetric"`, zero in the middle (Jacob et al. 2018, arXiv:1712.05877);
            `"asymmetric"`, from the minimum over the range; or levels: `"k_means"`, found for each
            step, `"nf"`, quantiles of a normal distribution, which is NF4 at 4 bits,
            `"power_of_two"` or `"apot"`.
        granularity: What shares a step: `PerTensor()`, `PerAxis(axis)` or
            `PerGroup(axis, group_size)`. A weight that groups do not divide has a step for each
            index of its last axis; one of rank 1 has one step.
        min_rank: Arrays of a lower rank, such as biases, stay as they are; so does what is not
            float.

    Raises:
        ValueError: If an argument is outside of the above.

    Example:

    ```python
    quantizer = tfq.WeightOnlyQuantizer(4)
    quantized = quantizer.quantize(model.get_weights())
    model.set_weights(quantizer.dequantize(quantized))
    ```
    """

    def __init__(self, num_bits=8, *, grid="symmetric", granularity=None, min_rank=2):
        granularity = PerAxis(-1) if granularity is None else granularity
        if grid not in GRIDS:
            names = ", ".join(map(repr, GRIDS))
            raise ValueError(f"`grid` must be one of {names}. Received: {grid!r}.")
        least, most = {"symmetric": (2, 16), "asymmetric": (1, 16), "k_means": (1, 8)}.get(
            grid, (2, 8)
        )
        whole = isinstance(num_bits, int) and not isinstance(num_bits, bool)
        if not whole or not least <= num_bits <= most:
            raise ValueError(
                f"`num_bits` must be an integer from {least} to {most} for {grid!r}. Received: "
                f"{num_bits!r}."
            )
        if not isinstance(granularity, (PerTensor, PerAxis, PerGroup)):
            raise ValueError(
                "`granularity` must be a tfq.PerTensor, tfq.PerAxis or tfq.PerGroup. Received: "
                f"{granularity!r}."
            )
        if not isinstance(min_rank, int) or min_rank < 0:
            raise ValueError(
                f"`min_rank` must be a number of axes, 0 or more. Received: {min_rank!r}."
            )
        self.num_bits, self.grid = num_bits, grid
        self.granularity, self.min_rank = granularity, min_rank

    def quantize(self, params):
        """Returns `params` with a `QuantizedArray` in the place of each weight.

        Args:
            params: Array or variable, or a structure of them: `model.get_weights()`, a dict from
                names to the variables of a SavedModel. It is only read.

        Returns:
            The same structure; what is not quantized is an array.

        Raises:
            ValueError: If a weight has values that are not finite, or no values; it is named by
                its place.
        """
        leaves = [self._leaf(path, x) for path, x in tree.flatten_with_path(params)]
        return tree.pack_sequence_as(params, leaves)

    def dequantize(self, quantized):
        """Returns arrays in the place of `QuantizedArray`s, in the dtypes that they had.

        Args:
            quantized: What `quantize` returned, or a part of it.
        """
        return tree.map_structure(
            lambda x: _values(x) if isinstance(x, QuantizedArray) else x, quantized
        )

    def _leaf(self, path, x):
        x = ops.convert_to_numpy(x)
        if not keras.backend.is_float_dtype(str(x.dtype)) or x.ndim < self.min_rank:
            return x
        w = x.astype(np.float32)
        if not w.size or not np.isfinite(w).all():
            what = "values that are not finite" if w.size else "no values"
            place = f" at {'/'.join(map(str, path))}" if path else ""
            raise ValueError(f"A weight must have finite values. Received: {what}{place}.")
        return self._quantized(w, str(x.dtype))

    def _quantized(self, w, dtype):
        quantizer = self._steps_for(w.shape)
        rows = _rows(quantizer, w)
        shape = quantizer.scale_shape
        minimum = codebook = None
        if self.grid == "symmetric":
            quantizer.fit(w)
            scale = ops.convert_to_numpy(quantizer.steps(w))
            q = np.rint(w / ops.convert_to_numpy(quantizer.spread(scale)))
            integers = np.clip(q, quantizer.spec.qmin, quantizer.spec.qmax)
        elif self.grid == "asymmetric":
            low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
            top = 2**self.num_bits - 1
            step = (high - low) / np.float32(top)
            step = np.where(step > 0, step, np.float32(1))
            integers = np.clip(np.rint((rows - low) / step), 0, top)
            scale, minimum = step.reshape(shape), low.reshape(shape)
        elif self.grid == "k_means":
            levels = k_means(rows, 2**self.num_bits)
            integers = nearest_level(rows, levels)
            scale, codebook = np.ones(shape, np.float32), levels.reshape(*shape, -1)
        else:
            codebook = TABLES[self.grid](self.num_bits)
            largest = np.abs(rows).max(axis=1, keepdims=True) / np.abs(codebook).max()
            step = np.where(largest > 0, largest, np.float32(1))
            integers, scale = nearest_level(rows / step, codebook), step.reshape(shape)
        if self.grid != "symmetric":
            integers = _weight(quantizer, integers)
        return QuantizedArray(
            integers.astype(self._stored),
            scale.astype(np.float32),
            minimum,
            codebook,
            self.num_bits,
            quantizer.spec.granularity,
            dtype,
        )

    @property
    def _stored(self):
        signed = self.grid == "symmetric"
        return f"{'' if signed else 'u'}int{8 if self.num_bits <= 8 else 16}"

    def _steps_for(self, shape):
        """Returns the quantizer that says which values of a weight share a step."""
        granularity = PerTensor() if len(shape) < 2 else self.granularity
        if isinstance(granularity, PerGroup) and shape[granularity.axis] % granularity.group_size:
            granularity = PerAxis(-1)
        spec = QuantSpec(
            max(self.num_bits, 2), symmetric=True, narrow_range=True, granularity=granularity
        )
        quantizer = AbsMax(spec)
        quantizer.build(shape)
        return quantizer


def _rows(quantizer, w):
    """Returns a weight as rows of values that share a step."""
    parts = w.reshape(quantizer.parts_shape)
    return parts.transpose(_order(quantizer)).reshape(math.prod(quantizer.scale_shape), -1)


def _weight(quantizer, rows):
    """Returns rows in the shape of the weight."""
    order, shape = _order(quantizer), quantizer.parts_shape
    parts = rows.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
    return parts.reshape(quantizer.weight_shape)


def _order(quantizer):
    kept = [a for a in range(len(quantizer.parts_shape)) if a not in quantizer.reduced_axes]
    return [*kept, *quantizer.reduced_axes]


def _values(x: QuantizedArray) -> np.ndarray:
    """Returns what a `QuantizedArray` stands for."""
    spec = QuantSpec(8, symmetric=True, narrow_range=True, granularity=x.granularity)
    quantizer = AbsMax(spec)
    quantizer.build(x.shape)
    spread = lambda v: ops.convert_to_numpy(quantizer.spread(np.float32(v)))  # noqa: E731
    if x.codebook is None:
        found = x.integers * spread(x.scale)
        found = found if x.minimum is None else found + spread(x.minimum)
    elif x.codebook.ndim == 1:
        found = x.codebook[x.integers] * spread(x.scale)
    else:
        rows = _rows(quantizer, x.integers).astype(np.int64)
        levels = x.codebook.reshape(len(rows), -1)
        found = _weight(quantizer, np.take_along_axis(levels, rows, 1))
    return found.astype(np.float32).astype(x.dtype)
