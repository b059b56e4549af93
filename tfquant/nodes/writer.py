"""A graph of ONNX while it is written: nodes, constants, and what is known of each tensor."""

import dataclasses
import math

import numpy as np

from tfquant.graph.graph import UniqueNames
from tfquant.layers.plain import Barrier
from tfquant.nodes.extra import load

# Of the first opset with integers of 4 and 16 bits, and with scales for blocks.
OPSET, IR_VERSION = 21, 10

# What 8-bit integers of the model are in the file more than in the model.
FROM_0 = 128


@dataclasses.dataclass(frozen=True)
class Step:
    """The grid of a tensor: `real = scale * (q - zero_point)`.

    Integers of 8 bits are counted from 0, as ONNX Runtime's kernels on x86-64 have them: of signed
    ones it turns those into such that one operator reads, and computes in float where both meet.

    Attributes:
        scale: Float32 number.
        zero_point: Integer, as the file counts them.
        bits: Width of the integers that the file stores.
        low: Smallest integer of the grid.
        high: Largest one.
    """

    scale: np.float32
    zero_point: int
    bits: int
    low: int
    high: int

    @classmethod
    def of(cls, grid) -> "Step":
        """Returns that of a `Grid` whose parameters are numbers."""
        params, spec = grid.params, grid.spec
        more = FROM_0 if spec.stored_bits == 8 else 0
        ends = (int(n) + more for n in (params.zero_point, spec.qmin, spec.qmax))
        zero_point, low, high = ends
        return cls(np.float32(params.scale), zero_point, spec.stored_bits, low, high)

    @property
    def dtype(self):
        """Type of the integers."""
        return np.dtype(np.uint8 if self.bits == 8 else np.int16)

    def same(self, other: "Step | None") -> bool:
        """Whether `other` has the same integers for the same real numbers."""
        return other is not None and (self.scale, self.zero_point, self.bits) == (
            other.scale,
            other.zero_point,
            other.bits,
        )


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor of the model in the graph.

    Attributes:
        shape: Its shape as Keras has it, channels last.
        q: Name of its integers, or `None`.
        step: Their `Step`, or `None`.
        real: Name of its real values, or `None` as long as nobody reads them.
        first: Whether the graph has its channels behind the batch, and not last.
        held: Its integers or real values where it is a constant, else `None`.
        dtype: Type of its values in Keras.
        turned: The same tensor in the other layout, once somebody asked for it.
        done: Whether it is on the grid on which it leaves the call that computes it.
    """

    shape: tuple
    q: str | None = None
    step: Step | None = None
    real: str | None = None
    first: bool = False
    held: np.ndarray | None = None
    dtype: str = "float32"

    def __post_init__(self):
        self.turned, self.done = None, False


class Writer:
    """Writes a graph.

    Attributes:
        nodes: ONNX nodes, in order.
        initializers: ONNX tensors.
    """

    def __init__(self):
        self.onnx, _ = load()
        self.nodes, self.initializers = [], []
        self._held, self._unique = {}, UniqueNames()

    def name(self, wanted: str) -> str:
        """Returns a name that no other tensor has."""
        return self._unique(wanted)

    def add(self, operator: str, inputs, name: str = "", outputs: int = 1, **attributes):
        """Adds a node; returns the name of its output, or a list of names.

        Args:
            operator: Kind of node.
            inputs: Names of its inputs, `""` for one that is left out.
            name: Name of its output; one of the graph's without.
            outputs: Number of outputs.
            **attributes: Its attributes.
        """
        names = [self.name(name or f"t{len(self.nodes)}") for _ in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values, name: str = "") -> str:
        """Returns the name of a constant; equal ones are one."""
        values = np.asarray(values)
        return self._store(values.dtype.str, values, lambda n: self._tensor(values, n), name)

    def own(self, integers, name: str = "") -> str:
        """Returns the name of a constant of 8-bit integers that nobody shares.

        Where ONNX Runtime 1.32 makes weights unsigned ("session.x64quantprecision"), it loads no
        file in which two operators share a kernel, or its zero points.
        """
        name = self.name(name or f"c{len(self.initializers)}")
        self.initializers.append(self._tensor(np.asarray(integers, np.int8), name))
        return name

    def nibbles(self, integers, name: str = "") -> str:
        """Returns the name of a constant of 4-bit integers, two in a byte."""
        q = np.asarray(integers, np.int8)
        flat = np.append(q.reshape(-1), np.zeros(q.size % 2, np.int8)) & 15
        packed = (flat[::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()
        make, int4 = self.onnx.helper.make_tensor, self.onnx.TensorProto.INT4
        return self._store("int4", q, lambda n: make(n, int4, q.shape, packed, raw=True), name)

    def _tensor(self, values, name):
        return self.onnx.numpy_helper.from_array(np.asarray(values, order="C"), name)

    def _store(self, kind, values, make, name):
        key = kind, values.shape, values.tobytes()
        if key not in self._held:
            self._held[key] = self.name(name or f"c{len(self.initializers)}")
            self.initializers.append(make(self._held[key]))
        return self._held[key]

    def step(self, step: Step) -> list[str]:
        """Returns the names of a scale and a zero point."""
        zero_point = np.array(step.zero_point, step.dtype)
        return [self.constant(np.float32(step.scale)), self.constant(zero_point)]

    def real(self, x: Value) -> str:
        """Returns the name of real values."""
        if x.real is None:
            x.real = self.add("DequantizeLinear", [x.q, *self.step(x.step)])
        return x.real

    def quantize(self, x: Value, step: Step, name: str = "", clamp=None) -> Value:
        """Returns `x` on a grid.

        QuantizeLinear clips to all integers of its type, which is a ReLU where the smallest of
        them is 0. A Relu would keep ONNX Runtime from computing what is in front of it in
        integers, so what is left to clip is clipped behind.

        Args:
            x: `Value`.
            step: The grid.
            name: Name of the integers.
            clamp: Real `(low, high)`, or `None`.
        """
        low, high = step.low, step.high
        if clamp is not None:
            bounds = [None if b is None else _nearest(b, step) for b in clamp]
            low = low if bounds[0] is None else max(low, bounds[0])
            high = high if bounds[1] is None else min(high, bounds[1])
        info = np.iinfo(step.dtype)
        clips = low > info.min or high < info.max
        if clips and step.bits > 8:  # There is no Clip of 16 bits.
            ends = [np.float32(step.scale * (q - step.zero_point)) for q in (low, high)]
            x = Value(x.shape, real=self._clip(self.real(x), *ends), first=x.first)
        real = self.real(x)
        if x.q is not None:  # ONNX Runtime makes one grid of two in a row, but for what it clips.
            real = self._clip(real, *np.float32([-Barrier.LIMIT, Barrier.LIMIT]))
        q = self.add("QuantizeLinear", [real, *self.step(step)], "" if clips else name)
        if clips and step.bits == 8:
            q = self._clip(q, *(step.dtype.type(n) for n in (low, high)), name)
        return Value(x.shape, q, step, first=x.first)

    def _clip(self, x, low, high, name=""):
        return self.add("Clip", [x, self.constant(low), self.constant(high)], name)

    def clamped(self, x: Value, clamp) -> Value:
        """Returns `x`, real, bounded by `(low, high)`, or by nothing."""
        if clamp is None:
            return x
        if tuple(clamp) == (0.0, None):
            return Value(x.shape, real=self.add("Relu", [self.real(x)]), first=x.first)
        ends = ["" if b is None else self.constant(np.float32(b)) for b in clamp]
        return Value(x.shape, real=self.add("Clip", [self.real(x), *ends]), first=x.first)

    def moved(self, xs: list[Value], shape, write, first=False) -> Value:
        """Returns what moves values, or picks some: on the integers themselves, where all lie on
        one grid of 8 bits.

        Args:
            xs: `Value`s.
            shape: Shape of the output, or a list of those of several.
            write: Function of the names of tensors that returns the name of the output, or names.
            first: Whether the output has its channels behind the batch.
        """
        steps = [x.step for x in xs]
        same = None not in steps and all(steps[0].same(s) for s in steps[1:])
        integers = same and steps[0].bits == 8
        found = write([x.q if integers else self.real(x) for x in xs])
        several = isinstance(found, list)
        shapes = shape if several else [shape]
        values = [
            Value(s, *((n, steps[0]) if integers else (None, None, n)), first=first)
            for n, s in zip(found if several else [found], shapes, strict=True)
        ]
        if same and not integers:
            values = [self.quantize(v, steps[0]) for v in values]
        return values if several else values[0]

    def layout(self, x: Value, first: bool) -> Value:
        """Returns `x` with its channels behind the batch, or last."""
        rank = len(x.shape)
        if x.first == first or rank < 3:
            return x
        if x.turned is None:
            order = (0, rank - 1, *range(1, rank - 1)) if first else (0, *range(2, rank), 1)
            x.turned = self._turn(x, first, order)
            x.turned.turned = x
        return x.turned

    def _turn(self, x, first, order):
        if x.held is not None:
            held = x.held.transpose(order)
            return self._constant_value(x, held, first)
        if all(n == 1 for n in x.shape[1:-1]):  # Nothing moves.
            channels = x.shape[-1]
            inner = [channels, *x.shape[1:-1]] if first else [*x.shape[1:-1], channels]
            return self.moved([x], x.shape, lambda names: self.reshaped(names[0], inner), first)
        return self.moved(
            [x], x.shape, lambda names: self.add("Transpose", names, perm=order), first
        )

    def held(self, values, shape, step: Step | None = None, name: str = "") -> Value:
        """Returns a constant.

        Args:
            values: Its integers, or real values where there is no `step`.
            shape: Its shape.
            step: Its grid, or `None`.
            name: Name of the tensor.
        """
        value = Value(tuple(shape), step=step, held=np.asarray(values))
        return self._constant_value(value, value.held, False, name)

    def _constant_value(self, x, held, first, name=""):
        stored = self.constant(held, name)
        if x.step is None:
            return Value(x.shape, real=stored, first=first, held=held, dtype=held.dtype.name)
        return Value(x.shape, stored, x.step, first=first, held=held)

    def reshaped(self, name: str, inner) -> str:
        """Returns the tensor in a shape whose first axis, the batch, is free."""
        if None in inner:
            raise ValueError(
                f"A known length is expected for each axis but the batch. Received: {inner}."
            )
        shape = self.constant(np.array([-1, *inner], np.int64))
        return self.add("Reshape", [name, shape])

    def reals(self, xs: list[Value]) -> tuple[list[str], bool]:
        """Returns names of real values in one layout, and whether channels are behind the batch.

        Values of other ranks are broadcast from the last axis, so that all have it last.
        """
        ranks = {len(x.shape) for x in xs}
        first = any(x.first for x in xs) and len(ranks) == 1
        return [self.real(self.layout(x, first)) for x in xs], first

    def axis(self, axis: int, rank: int, first: bool) -> int:
        """Returns where an axis of Keras's is in the graph."""
        axis %= rank
        if not first or axis == 0:
            return axis
        return 1 if axis == rank - 1 else axis + 1

    def to_model(self, inputs, outputs, producer: str):
        """Returns the model; see `onnx.helper.make_model`."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "tfquant", inputs, outputs, self.initializers)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name=producer,
        )


def _nearest(bound, step):
    """Returns the integer of a real bound, as the simulation rounds it."""
    return int(np.rint(np.float32(bound) / step.scale)) + step.zero_point


def size_of(shape) -> int:
    """Returns the number of values of a row."""
    return math.prod(shape[1:])
