"""`inspect`: what is in a `.tflite` file."""

import collections
import contextlib
import dataclasses
import os
import struct

from ai_edge_litert.interpreter import Interpreter
from rich.text import Text

from tfquant.litert.flatbuffer import File
from tfquant.report import Printable, plain_table

_FLOAT = ("FLOAT32", "FLOAT16", "FLOAT64", "BFLOAT16")

# They change the type of a tensor and compute nothing.
_CASTS = ("QUANTIZE", "DEQUANTIZE", "CAST")


# What reading a file raises whose offsets and numbers lead anywhere.
DAMAGE = (
    *(AttributeError, IndexError, KeyError, MemoryError, OverflowError, RecursionError),
    *(struct.error, TypeError, ValueError),
)


@dataclasses.dataclass(frozen=True)
class OperatorSummary:
    """One operator of a file.

    Attributes:
        operator: Kind of operator, such as `CONV_2D`.
        output: Name of its first output.
        input_type: Type of the tensor it reads; `None` where it reads stored ones only.
        output_type: Type of its first output.
        weight_type: Type of its weights, the largest stored tensor; `None` without.
        weight_bytes: Bytes of all stored tensors it reads.
        granularity: What shares a weight scale, such as `"per channel (16)"`; `None` without.
    """

    operator: str
    output: str
    input_type: str | None
    output_type: str
    weight_type: str | None = None
    weight_bytes: int = 0
    granularity: str | None = None

    @property
    def is_float(self) -> bool:
        """Whether it computes in float: it reads or returns real values and is no cast."""
        types = (self.input_type, self.output_type)
        return self.operator not in _CASTS and any(kind in _FLOAT for kind in types)


@dataclasses.dataclass(frozen=True)
class FileSummary(Printable):
    """What is in a `.tflite` file.

    Attributes:
        path: The file.
        num_bytes: Its size.
        weight_bytes: Bytes of all stored tensors, each counted once.
        inputs: `(name, type, shape)` of each input; -1 is a free dimension.
        outputs: The same of each output.
        grids: Dict from the names of inputs and outputs to `(scale, zero_point)`, where they have.
        operators: One `OperatorSummary` for each operator, in order.
    """

    path: str
    num_bytes: int
    weight_bytes: int
    inputs: list[tuple[str, str, tuple[int, ...]]]
    outputs: list[tuple[str, str, tuple[int, ...]]]
    operators: list[OperatorSummary]
    grids: dict[str, tuple[float, int]] = dataclasses.field(default_factory=dict)

    @property
    def float_operators(self) -> list[OperatorSummary]:
        """The operators that compute in float."""
        return [operator for operator in self.operators if operator.is_float]

    def parts(self):
        """Yields tables and lines."""
        table = plain_table()
        for name in ("operator", "output", "in", "out", "weights", "scales"):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        table.add_column("bytes", justify="right")
        outputs = without_model([operator.output for operator in self.operators])
        for operator, output in zip(self.operators, outputs, strict=True):
            table.add_row(
                operator.operator,
                Text(output),
                operator.input_type or "",
                operator.output_type,
                operator.weight_type or "",
                operator.granularity or "",
                f"{operator.weight_bytes:,}" if operator.weight_bytes else "",
            )
        yield table
        for label, tensors in (("input", self.inputs), ("output", self.outputs)):
            for name, kind, shape in tensors:
                grid = ""
                if name in self.grids:
                    grid = ", scale {:.6g}, zero point {}".format(*self.grids[name])
                yield Text(f"{label:<6} {name}: {kind} {list(shape)}{grid}")
        counts = collections.Counter(operator.operator for operator in self.float_operators)
        named = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
        yield Text(f"float operators: {named}")
        yield Text(
            f"{self.path}: {self.num_bytes:,} bytes, {self.weight_bytes:,} of them stored values, "
            f"{len(self.operators)} operators"
        )


def without_model(names: list[str]) -> list[str]:
    """Returns names of tensors without the model's name, with which the converter begins them."""
    firsts = {name.partition("/")[0] for name in names if "/" in name}
    if len(firsts) != 1:
        return names
    prefix = f"{firsts.pop()}/"
    return [name.removeprefix(prefix) for name in names]


def inspect(path) -> FileSummary:
    """Reads what a `.tflite` file computes and with how many bits.

    Args:
        path: The file; it may come from any converter.

    Returns:
        `FileSummary`; print it.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no `.tflite` file.

    Example:

    ```python
    summary = tfq.inspect("model.tflite")
    assert not summary.float_operators
    ```
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        content = file.read()
    file = checked_file(content, path)
    with damage_named(path):
        return summary_of(file, path, len(content))


def summary_of(file: File, path: str, num_bytes: int) -> FileSummary:
    """Returns what is in a file that was read."""
    stored = {}
    for tensor in file.subgraph.tensors:
        data = file.model.buffers[tensor.buffer].data
        stored[tensor.buffer] = 0 if data is None else len(data)
    return FileSummary(
        path=path,
        num_bytes=num_bytes,
        weight_bytes=sum(stored.values()),
        inputs=[_tensor(file, index) for index in file.inputs],
        outputs=[_tensor(file, index) for index in file.outputs],
        operators=[_operator(file, op) for op in file.ops],
        grids={
            file.name(index): (float(file.scale(index)[0]), int(file.zero_point(index)[0]))
            for index in (*file.inputs, *file.outputs)
            if file.scale(index).size == 1
        },
    )


def checked_file(content: bytes, path: str) -> File:
    """Returns the operators and tensors of a file that LiteRT accepts.

    Raises:
        ValueError: If it does not; the reader of `File` trusts what it reads.
    """
    try:
        Interpreter(model_content=content)
        return File(content)
    except (RuntimeError, *DAMAGE) as error:
        raise ValueError(
            f"A .tflite file is expected. Received: '{path}', which LiteRT cannot read: {error}"
        ) from error


@contextlib.contextmanager
def damage_named(path: str, ours=()):
    """Makes what damage raises inside a `ValueError` that names the file.

    Args:
        path: The file.
        ours: Kinds of errors that are raised as they are, as they tell of something else.
    """
    try:
        yield
    except ours:
        raise
    except (RuntimeError, *DAMAGE) as error:
        words = f"which is damaged: {type(error).__name__}: {error}"
        raise ValueError(f"A .tflite file is expected. Received: '{path}', {words}") from error


def _tensor(file, index):
    signature = file.subgraph.tensors[index].shapeSignature
    shape = file.shape(index) if signature is None else tuple(int(n) for n in signature)
    return file.name(index), file.type(index), shape


def _operator(file, op) -> OperatorSummary:
    computed = [i for i in op.inputs if not file.is_constant(i)]
    constants = [i for i in op.inputs if file.is_constant(i)]
    # A small layer's bias may be longer than its kernel.
    size = lambda i: (len(file.shape(i)) > 1, file.num_bytes(i))  # noqa: E731
    weights = max(constants, key=size, default=None)
    # The weights of a weight-only file pass through a DEQUANTIZE.
    is_weights = weights is not None and (
        file.scale(weights).size or file.group_size(weights) or file.type(weights) in _FLOAT
    )
    output = op.outputs[0] if op.outputs else None
    return OperatorSummary(
        operator=op.name,
        output="" if output is None else file.name(output).split(";")[0],
        input_type=file.type(computed[0]) if computed else None,
        output_type="" if output is None else file.type(output),
        weight_type=file.type(weights) if is_weights else None,
        weight_bytes=sum(file.num_bytes(i) for i in constants),
        granularity=_granularity(file, weights) if is_weights else None,
    )


def _granularity(file, weights):
    group_size, scales = file.group_size(weights), file.scale(weights).size
    if group_size:
        return f"per group of {group_size}"
    if not scales:
        return None
    return "per tensor" if scales == 1 else f"per channel ({scales})"
