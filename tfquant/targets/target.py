"""`Target`: what a piece of hardware, or a runtime, takes, as a table with its source."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping

from tfquant.litert import rules
from tfquant.litert.flatbuffer import File, Op, kernel_inputs

# Types of tensors that hold real numbers, as integers or as floats; others are indices and masks.
REAL_TYPES = ("FLOAT16", "FLOAT32", "INT16", "INT4", "INT8", "UINT8")

# What to do about an operator.
USE_W8A8 = "scheme w8a8"
KEEP_INTEGERS = "--input_type int8 --output_type int8"
ANOTHER_LAYER = "another layer in its place"
BESIDE_IT = "integers in what is float beside it"


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a runtime, or its compiler, says of a file.

    Attributes:
        tool: What says so.
        refused: Dict from the index of an operator to why it is not taken.
        figures: Dict from what was measured or estimated to a number with its unit.
        complete: Whether it was asked of every operator, and not until the first that is refused.
    """

    tool: str
    refused: Mapping[int, str]
    figures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    complete: bool = True

    @classmethod
    def by_running(cls, tool: str, refused, figures=None) -> "Proof":
        """Returns what running a file says, `refused` from `first_refused`."""
        if refused is None:
            return cls(tool, {}, figures or {})
        op, error = refused
        return cls(tool, {op.index: " ".join(str(error).split())}, complete=False)


@dataclasses.dataclass(frozen=True)
class Target:
    """What takes a `.tflite` file.

    Attributes:
        name: What users call it.
        summary: What it is.
        source: Where the table is from.
        operators: Operators that it takes; `None` for all that LiteRT has.
        activations: Types of the real tensors that it takes.
        weights: Types of weights that it takes.
        elsewhere: What becomes of an operator that it does not take.
        limits: Functions of a file and an operator that return why it is not taken, and what to do
            about it; `None` where nothing is the matter.
        remedies: What to do about operators that it does not have, where that is not another layer.
        fixed_batch: Whether every dimension must be known.
        prove: Function of the bytes of a file that returns a `Proof`, `None` where the tool is not
            installed.
        package: What to install for it.
        module: What that is to import.
    """

    name: str
    summary: str
    source: str
    operators: frozenset[str] | None
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    elsewhere: str
    limits: tuple[Callable[[File, Op], tuple[str, str] | None], ...] = ()
    remedies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed_batch: bool = False
    prove: Callable[[bytes], Proof | None] = lambda content: None
    package: str = ""
    module: str = ""

    def tool_is_there(self) -> bool:
        """Whether what proves is installed, or nothing is to be installed for it."""
        return not self.module or importlib.util.find_spec(self.module) is not None

    def why_not(self, file: File, op: Op) -> tuple[str, str] | None:
        """Returns why an operator is not taken, and what to do about it; `None` if it is."""
        if self.operators is not None and op.name not in self.operators:
            why = f"{self.summary} has no {op.name}"
            return why, _for_a_cast(file, op) or self.remedies.get(op.name, ANOTHER_LAYER)
        weights = weights_of(file, op)
        if weights is not None:
            kind = file.type(weights)
            if kind not in self.weights:
                return f"weights are {kind}, not {_or(self.weights)}", USE_W8A8
        for kind in real_types(file, op):
            if kind not in self.activations:
                why = f"tensors are {kind}, not {_or(self.activations)}"
                return why, _for_a_cast(file, op) or USE_W8A8
        for limit in self.limits:
            found = limit(file, op)
            if found is not None:
                return found
        return None


def weights_of(file: File, op: Op) -> int | None:
    """Returns the tensor of the weights that an operator multiplies by, `None` without stored."""
    if op.name not in rules.KERNELS:
        return None
    _, index, _ = kernel_inputs(op)
    return index if file.is_constant(index) else None


def _for_a_cast(file, op):
    """Returns what to do about an operator that brings integers to floats or back, else `None`."""
    if op.name not in ("QUANTIZE", "DEQUANTIZE"):
        return None
    at_edge = set(op.inputs) & set(file.inputs) or set(op.outputs) & set(file.outputs)
    return KEEP_INTEGERS if at_edge else BESIDE_IT


def real_types(file: File, op: Op) -> list[str]:
    """Returns the types of the real tensors that an operator reads and writes, without stored."""
    tensors = [i for i in (*op.inputs, *op.outputs) if not file.is_constant(i)]
    return sorted({file.type(i) for i in tensors} & set(REAL_TYPES))


def _or(names):
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
