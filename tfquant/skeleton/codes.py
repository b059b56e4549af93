"""Kernels as numbers: what the TFLite converter sees in the place of quantized weights.

The converter needs shapes, and no weights. Each kernel enters the graph under a code of its own, so
that a buffer of the file says which kernel it is, whatever the values, and equal kernels are not
merged. Codes are bit patterns of float32, counted up from one that no model's constant has:

    a kernel of an operator that multiplies by it:  one code everywhere
    any other quantized weight:                     a code for each value

The former is a splat, which costs the converter next to nothing; the layout in the file follows
from the operator. The latter tells the layout, too.
"""

import dataclasses

import numpy as np

from tfquant.litert import rules
from tfquant.litert.flatbuffer import File, kernel_inputs
from tfquant.rewrite.lower import Lowered, LoweredUnit
from tfquant.wrappers import LoweredKernel

# -9.7e-21.
FIRST_CODE = 0x9E3779B1


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


class Codes:
    """The codes of all quantized weights of a model.

    Args:
        lowered: From `tfquant.rewrite.lower`.
        but: Ids of the variables that enter as they are. (Variables compare by value, and are no
            keys themselves.)
    """

    def __init__(self, lowered: Lowered, but: frozenset[int] = frozenset()):
        self.variables, self.starts, self.owners = {}, [], []
        start = FIRST_CODE
        for unit in lowered.units:
            for kernel in unit.kernels:
                size = int(np.prod(kernel.variable.shape))
                if id(kernel.variable) in but or id(kernel.variable) in self.variables or not size:
                    continue
                self.variables[id(kernel.variable)] = len(self.starts)
                self.starts.append(start)
                self.owners.append((unit, kernel))
                start += 1 if kernel.channel_axes else size
        self.end = start

    def value(self, variable):
        """Returns what stands for a variable in the graph: one number, or an array."""
        number = self.variables.get(id(variable))
        if number is None:
            return variable.numpy()
        start, shape = self.starts[number], tuple(variable.shape)
        if self.owners[number][1].channel_axes:
            return np.uint32(start).view(np.float32)
        codes = np.arange(start, start + int(np.prod(shape)), dtype=np.uint32)
        return codes.view(np.float32).reshape(shape)

    def find(self, file: File) -> tuple[dict[tuple[int, int], Stored], frozenset[int]]:
        """Finds the weights in a file, and takes the codes out of its buffers.

        Returns:
            `(stored, changed)`: a dict from `(operator index, tensor index)` to `Stored`, and the
            ids of variables whose codes are not in the file, or not where an operator reads them as
            they are: the converter computed with them.
        """
        stored, changed, seen = {}, set(), {}
        for op in file.ops:
            for index in op.inputs:
                number = self._number(file, index)
                if number is None:
                    continue
                found = self._stored(file, op, index, number)
                if found is None:
                    changed.add(number)
                else:
                    stored[op.index, index] = found
                seen[number] = index
        changed.update(set(range(len(self.starts))) - set(seen))
        for _, index in stored:
            file.empty(index)
        ids = {number: key for key, number in self.variables.items()}
        return stored, frozenset(ids[number] for number in changed)

    def _number(self, file, index):
        """Returns whose code the first value of a stored tensor is, or `None`."""
        if not file.is_constant(index) or file.type(index) != "FLOAT32":
            return None
        code = int(file.constant(index).reshape(-1)[:1].view(np.uint32)[0])
        if not self.starts or not FIRST_CODE <= code < self.end:
            return None
        return int(np.searchsorted(self.starts, code, "right")) - 1

    def _stored(self, file, op, index, number):
        """Describes a stored tensor, `None` if it is not all of the kernel and nothing else."""
        unit, kernel = self.owners[number]
        codes = file.constant(index).view(np.uint32)
        if codes.size != np.prod(kernel.variable.shape):
            return None
        if not kernel.channel_axes:
            order = codes.astype(np.int64) - self.starts[number]
            if (np.sort(order, axis=None) != np.arange(order.size)).any():
                return None
            found = Stored(unit, kernel, order, codes.shape, None)
            return None if kernel.spec and found.scales() is None else found
        axis = rules.KERNELS.get(op.name)
        if axis is None or index != kernel_inputs(op)[1] or (codes != self.starts[number]).any():
            return None
        return Stored(unit, kernel, None, codes.shape, axis)


def _channels_first(values, axes):
    """Returns a matrix `[output channels, inputs]`."""
    axes = [axis % values.ndim for axis in axes]
    others = [axis for axis in range(values.ndim) if axis not in axes]
    channels = int(np.prod([values.shape[axis] for axis in axes]))
    return values.transpose(*axes, *others).reshape(channels, -1)
