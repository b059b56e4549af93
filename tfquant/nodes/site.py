"""One call of a layer, and the table of functions that write calls."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from tfquant.nodes.writer import Step, Value, Writer
from tfquant.quantizers import grid_of

# Functions that write a call: a dict from the type of a layer, or the name of an operation's.
ROWS: dict[object, Callable] = {}


@dataclasses.dataclass(eq=False)
class Site:
    """One call of a layer, while it is written.

    Attributes:
        writer: `Writer`.
        layer: The layer or operation, no wrapper.
        args: Positional arguments; a `Value` in the place of each tensor.
        kwargs: Keyword arguments, likewise.
        outputs: KerasTensors that the call returns, a list.
        unit: `LoweredUnit`, `None` of a layer that stays float.
        name: Name of the layer in the file.
    """

    writer: Writer
    layer: object
    args: tuple
    kwargs: dict
    outputs: list
    unit: object
    name: str

    @property
    def operation(self):
        """The `keras.Operation` that is called, `None` of a layer."""
        if isinstance(self.layer, keras.layers.Layer):
            return getattr(self.layer, "operation", None)
        return self.layer

    @property
    def shape(self) -> tuple:
        """Shape of the first output."""
        return tuple(self.outputs[0].shape)

    @property
    def steps(self) -> list[Step | None]:
        """The `Step` of each output, `None` of a float one."""
        if self.unit is None:
            return [None] * len(self.outputs)
        grids = [grid_of(x) for x in self.unit.outputs]
        return [None if grid is None else Step.of(grid) for grid in grids]

    @property
    def clamp(self):
        """`(low, high)` that the output is clipped to, or `None`."""
        sites = getattr(self.unit and self.unit.layer, "call_sites", None)
        return sites[self.unit.kwargs.get("call_site", 0)].clamp if sites else None

    @property
    def x(self) -> Value:
        """The first tensor."""
        first = self.args[0]
        return first[0] if isinstance(first, (list, tuple)) else first

    @property
    def xs(self) -> list[Value]:
        """The tensors, of one list or one by one."""
        first = self.args[0]
        found = first if isinstance(first, (list, tuple)) else self.args
        return [x for x in found if isinstance(x, Value)]

    def value(self, real: str, first: bool = False) -> Value:
        """Returns the output, real values of that name."""
        return Value(self.shape, real=real, first=first)

    def on_grid(self, value: Value) -> Value:
        """Returns the output as it leaves the call: clipped and, where it has one, on its grid."""
        (step, *_), clamp = self.steps, self.clamp
        if value.done:
            return value
        if value.step is not None and value.step.same(step) and clamp is None:
            return value
        if step is None:
            return self.writer.clamped(value, clamp)
        return self.writer.quantize(value, step, self.name, clamp)

    def done(self, value: Value) -> Value:
        """Notes that a value is as it leaves the call."""
        value.done = True
        return value


def writes(*kinds):
    """Registers a function of a `Site` for layers of types, or operations of names."""

    def register(function):
        for kind in kinds:
            if kind in ROWS:
                raise ValueError(f"Each kind has one row. Received: {kind} twice.")
            ROWS[kind] = function
        return function

    return register


def row_of(layer) -> Callable | None:
    """Returns the function that writes calls of a layer or operation, or `None`."""
    operation = getattr(layer, "operation", None)
    if operation is not None:
        return ROWS.get(type(operation).__name__)
    if isinstance(layer, keras.layers.Layer):
        return ROWS.get(type(layer))
    return ROWS.get(type(layer).__name__)


def weight(variable) -> np.ndarray:
    """Returns the values of a variable."""
    return np.asarray(variable)
