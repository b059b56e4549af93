"""A model without its weights: what the TFLite converter sees in their place.

The converter needs shapes, and no weights.

    of a convolution:                    an input of the graph
    of another operator that multiplies: one code everywhere
    any other quantized weight:          a code for each value

An input costs nothing, and is no other kernel's. The file has it where what brings it to the layout
of the operator ended, CONV_2D(x, TRANSPOSE(kernel)). A kernel that is not constant makes a dense
layer another operator; a splat of a number is next to nothing, too, until the file is written. The
layout of both follows from the operator. Codes are bit patterns of float32, counted up from one
that no model's constant has; one for each value tells the layout, too.
"""

import dataclasses

import numpy as np

from tfquant.litert import rules
from tfquant.litert.flatbuffer import File, kernel_inputs
from tfquant.rewrite.lower import Lowered, LoweredUnit
from tfquant.wrappers import LoweredKernel

# -9.7e-21.
FIRST_CODE = 0x9E3779B1

# Operators that bring a kernel to the layout of the one that multiplies by it.
LAYOUTS = frozenset({"EXPAND_DIMS", "RESHAPE", "SQUEEZE", "TRANSPOSE"})


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A quantized weight where an operator of the file reads it.

    Attributes:
        unit: The `LoweredUnit` that it belongs to.
        kernel: Its `LoweredKernel`.
        order: Position in the flat kernel of each value of the stored tensor, in its shape; `None`
            where output channels come first, or last in `DEPTHWISE_CONV_2D`.
        shape: Shape of the stored tensor.
        axis: Axis of the stored tensor that numbers output channels; `None` with an `order`.
    """

    unit: LoweredUnit
    kernel: LoweredKernel
    order: np.ndarray | None
    shape: tuple[int, ...]
    axis: int | None

    def laid_out(self, values: np.ndarray) -> np.ndarray:
        """Returns `values`, an array of the kernel's shape, as the file stores them."""
        if self.order is not None:
            return values.reshape(-1)[self.order]
        first = _channels_first(values, self.kernel.channel_axes)
        if self.axis:
            return np.ascontiguousarray(first.T).reshape(self.shape)
        return np.ascontiguousarray(first).reshape(self.shape)

    def values(self) -> np.ndarray:
        """Returns the real values, as the file would store them."""
        return self.laid_out(self.kernel.variable.numpy())

    @property
    def read_as_integers(self) -> bool:
        """Whether the operator multiplies integers by what it quantizes when it runs."""
        return self.unit.dynamic and self.axis is not None

    def scales(self) -> tuple[np.ndarray, int | None] | None:
        """Returns the scales and the axis of the stored tensor that they belong to.

        `None` for the axis of one scale; nothing at all where no axis numbers the scales.
        """
        scale = self.kernel.scale
        if self.kernel.group_size:  # Of FULLY_CONNECTED, whose weights are `[outputs, inputs]`.
            return np.ascontiguousarray(scale.T), 1
        if len(scale) == 1 or self.order is None:
            return scale, self.axis if len(scale) > 1 else None
        axes = [axis % self.kernel.integers.ndim for axis in self.kernel.spec.granularity.axes]
        kept = [n if axis in axes else 1 for axis, n in enumerate(self.kernel.integers.shape)]
        channel = np.arange(len(scale)).reshape(kept)
        channel = self.laid_out(np.broadcast_to(channel, self.kernel.integers.shape))
        for axis in range(channel.ndim):
            along = np.moveaxis(channel, axis, 0).reshape(channel.shape[axis], -1)
            if (along == along[:, :1]).all():
                return scale[along[:, 0]], axis
        return None


class Skeleton:
    """What stands for the quantized weights of a model.

    Args:
        lowered: From `tfquant.rewrite.lower`.
        but: Ids of the variables that enter as they are. (Variables compare by value, and are no
            keys themselves.)
    """

    def __init__(self, lowered: Lowered, but: frozenset[int] = frozenset()):
        self._kernels, self._coded, self._starts = [], [], []
        start, seen = FIRST_CODE, set(but)
        for unit in lowered.units:
            for kernel in unit.kernels:
                size = int(np.prod(kernel.variable.shape))
                if id(kernel.variable) in seen or not size:
                    continue
                seen.add(id(kernel.variable))
                if kernel.channel_axes and len(kernel.variable.shape) > 2:
                    self._kernels.append((unit, kernel))
                else:
                    self._coded.append((unit, kernel))
                    self._starts.append(start)
                    start += 1 if kernel.channel_axes else size
        self._end = start

    @property
    def kernels(self) -> list:
        """The variables that are inputs of the graph, behind those of the model."""
        return [kernel.variable for _, kernel in self._kernels]

    @property
    def codes(self) -> dict[int, np.ndarray]:
        """What stands for the others, one number or an array, by the ids of variables."""
        found = {}
        for (_, kernel), start in zip(self._coded, self._starts, strict=True):
            shape = tuple(kernel.variable.shape)
            if kernel.channel_axes:
                found[id(kernel.variable)] = np.uint32(start).view(np.float32)
            else:
                codes = np.arange(start, start + int(np.prod(shape)), dtype=np.uint32)
                found[id(kernel.variable)] = codes.view(np.float32).reshape(shape)
        return found

    def find(self, file: File) -> tuple[dict[tuple[int, int], Stored], frozenset[int]]:
        """Finds the weights in a file, and makes stored tensors of them that are yet to be filled.

        Returns:
            `(stored, changed)`: a dict from `(operator index, tensor index)` to `Stored`, and the
            ids of variables that are not where an operator reads them as they are: the converter
            computed with them.
        """
        first = len(file.inputs) - len(self._kernels)
        tensors, changed = {}, set()
        for index, (unit, kernel) in zip(file.inputs[first:], self._kernels, strict=True):
            found = _laid_out(file, index)
            if found is None:
                changed.add(id(kernel.variable))
            else:
                tensors[found[0]] = unit, kernel, found[1]
        file.store(list(tensors), [op for *_, ops in tensors.values() for op in ops], first)
        stored = {
            (op.index, index): Stored(unit, kernel, None, file.shape(index), rules.KERNELS[op.name])
            for index, (unit, kernel, _) in tensors.items()
            for op in file.consumers(index)
        }
        coded, changed_too = self._find_coded(file)
        return stored | coded, frozenset(changed | changed_too)

    def _find_coded(self, file):
        """Finds weights by their codes, and takes the codes out of the file's buffers."""
        stored, changed, seen = {}, set(), set()
        for op in file.ops:
            for index in op.inputs:
                number = self._number(file, index)
                if number is None:
                    continue
                seen.add(number)
                found = self._described(file, op, index, number)
                if found is None:
                    changed.add(number)
                else:
                    stored[op.index, index] = found
        changed.update(set(range(len(self._starts))) - seen)
        for _, index in stored:
            file.empty(index)
        return stored, {id(self._coded[number][1].variable) for number in changed}

    def _number(self, file, index):
        """Returns whose code the first value of a stored tensor is, or `None`."""
        if file.type(index) != "FLOAT32" or file.num_bytes(index) < 4:  # Or it is a kernel.
            return None
        code = int(file.constant(index).reshape(-1)[:1].view(np.uint32)[0])
        if not self._starts or not FIRST_CODE <= code < self._end:
            return None
        return int(np.searchsorted(self._starts, code, "right")) - 1

    def _described(self, file, op, index, number):
        """Describes a stored tensor, `None` if it is not all of the weight and nothing else."""
        unit, kernel = self._coded[number]
        codes, size = file.constant(index).view(np.uint32), int(np.prod(kernel.variable.shape))
        if kernel.channel_axes:
            others = codes.size != size or (codes != self._starts[number]).any()
            if others or not _multiplies_by(op, index):
                return None
            return Stored(unit, kernel, None, codes.shape, rules.KERNELS[op.name])
        order = codes.astype(np.int64) - self._starts[number]
        found, counts = np.unique(order, return_counts=True)
        # All of it, or copies of it for each row of a batch.
        if not np.array_equal(found, np.arange(size)) or len({*counts.tolist()}) > 1:
            return None
        found = Stored(unit, kernel, order, codes.shape, None)
        return None if kernel.spec and found.scales() is None else found


def _laid_out(file, index):
    """Follows a kernel to the tensor that operators multiply by.

    Returns:
        `(tensor index, operators)`: those that lead to it; `None` if anything else reads it.
    """
    ops = []
    while True:
        readers = file.consumers(index)
        if readers and all(_multiplies_by(op, index) for op in readers):
            return index, ops
        if len(readers) != 1 or readers[0].name not in LAYOUTS:
            return None
        ops.append(readers[0])
        (index,) = readers[0].outputs


def _multiplies_by(op, index):
    return op.name in rules.KERNELS and index == kernel_inputs(op)[1]


def _channels_first(values, axes):
    """Returns a matrix `[output channels, inputs]`."""
    axes = [axis % values.ndim for axis in axes]
    others = [axis for axis in range(values.ndim) if axis not in axes]
    channels = int(np.prod([values.shape[axis] for axis in axes]))
    return values.transpose(*axes, *others).reshape(channels, -1)
