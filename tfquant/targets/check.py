"""`check`: what a target takes of a file, and what to change."""

import collections
import dataclasses
import difflib
import os

from rich.text import Text

from tfquant.litert.inspect import checked_file, damage_named, summary_of, without_model
from tfquant.nodes.extra import load
from tfquant.onnx.run import Session, computes, is_integer
from tfquant.report import Printable, plain_table
from tfquant.targets.edgetpu import EDGETPU
from tfquant.targets.ethos_u import ETHOS_U
from tfquant.targets.litert import LITERT
from tfquant.targets.litert_gpu import LITERT_GPU
from tfquant.targets.target import USE_W8A8, Target
from tfquant.targets.tflm import TFLM

ONNXRUNTIME = "onnxruntime"

# By name; `xnnpack` is what LiteRT runs files with on a CPU.
TARGETS = {x.name: x for x in (LITERT, LITERT_GPU, TFLM, ETHOS_U, EDGETPU)}
ALIASES = {"xnnpack": "litert"}

# How an operator runs.
INTEGERS, FLOAT, REFUSED = "integers", "float", "not taken"


@dataclasses.dataclass(frozen=True)
class OperatorCheck:
    """How one operator runs.

    Attributes:
        operator: Kind of operator, such as `CONV_2D`.
        output: Name of its first output.
        runs: `"integers"`, `"float"` or `"not taken"`.
        why: Why it does not run in integers.
        remedy: What to change.
    """

    operator: str
    output: str
    runs: str
    why: str = ""
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class CheckReport(Printable):
    """What a target takes of a file.

    Attributes:
        path: The file.
        target: Name of the target.
        source: Where what is known of it is from.
        operators: One `OperatorCheck` for each operator, in order.
        elsewhere: What becomes of an operator that is not taken.
        proved_by: The tool that ran or compiled the file; empty if only the table was asked.
        figures: What that tool measured or estimated.
        install: Package of the tool that knows better, where it is not installed.
        notes: What is the matter with the file as a whole.
    """

    path: str
    target: str
    source: str
    operators: list[OperatorCheck]
    elsewhere: str
    proved_by: str = ""
    figures: dict[str, str] = dataclasses.field(default_factory=dict)
    install: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def refused(self) -> list[OperatorCheck]:
        """The operators that the target does not take."""
        return [x for x in self.operators if x.runs == REFUSED]

    @property
    def fits(self) -> bool:
        """Whether the target takes all of the file."""
        return not self.refused and not self.notes

    def parts(self):
        """Yields tables and lines."""
        if any(x.runs != INTEGERS for x in self.operators):
            table = plain_table()
            for name in ("operator", "output", "runs"):
                table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=24)
            table.add_column("why")
            table.add_column("what to change", max_width=30)
            for x, output in zip(self.operators, _names(self.operators), strict=True):
                if x.runs != INTEGERS:
                    table.add_row(x.operator, Text(output), x.runs, Text(x.why), Text(x.remedy))
            yield table
        for note in self.notes:
            yield Text(note)
        counts = collections.Counter(x.runs for x in self.operators)
        shares = ", ".join(f"{counts[x]} in {x}" for x in (INTEGERS, FLOAT) if counts[x])
        lost = f", {counts[REFUSED]} not taken: {self.elsewhere}" if counts[REFUSED] else ""
        count = f"{len(self.operators)} operators, {shares or 'none taken'}"
        yield Text(f"{self.path} on {self.target}: {count}{lost}")
        if self.figures:
            yield Text(", ".join(f"{name} {figure}" for name, figure in self.figures.items()))
        yield Text(f"source: {self.proved_by or 'a table alone'} ({self.source})")
        if self.install:
            yield Text(f"pip install {self.install}: its own tool is asked, too")


def _names(operators):
    """Returns the names of outputs: the first of several, without the model's."""
    return without_model([x.output.split(";")[0] for x in operators])


def check(path, device: str = "litert") -> CheckReport:
    """Says what a device takes of a file, what it runs in float, and what to change.

    What is installed of a device's own tools is asked: LiteRT, `tflite-micro`, Arm's Vela
    (`ethos-u-vela`), ONNX Runtime. Of the others, tables with their sources say so, and a compiler
    of theirs has the last word.

    Args:
        path: A `.tflite` file, from any converter; an `.onnx` file for `"onnxruntime"`.
        device: `"litert"` (`"xnnpack"` is another name), `"litert-gpu"`, `"tflm"`, `"ethos-u"`,
            `"edgetpu"` or `"onnxruntime"`.

    Returns:
        `CheckReport`; print it. `fits` says whether all is taken.

    Raises:
        ImportError: If ONNX Runtime is asked for and not installed.
        OSError: If the file cannot be read.
        ValueError: If the device is unknown, or the file none of its kind.

    Example:

    ```python
    report = tfq.check("model.tflite", "ethos-u")
    assert report.fits, report
    ```
    """
    path, name = os.fspath(path), ALIASES.get(device, device)
    known = (*TARGETS, *ALIASES, ONNXRUNTIME)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"`device` must be one of {', '.join(map(repr, known))}. Received: {device!r}.{meant}"
        )
    with open(path, "rb") as opened:
        content = opened.read()
    if name == ONNXRUNTIME:
        return _check_onnx(path, content)
    file = checked_file(content, path)
    with damage_named(path):
        return _check(file, path, content, TARGETS[name])


def _check(file, path, content, target: Target) -> CheckReport:
    proof, summary = target.prove(content), summary_of(file, path, len(content))
    operators = []
    for op, summarized in zip(file.ops, summary.operators, strict=True):
        found = target.why_not(file, op)
        if proof is not None:  # What compiles or runs it knows better than any table.
            why = proof.refused.get(op.index)
            if why and not found:
                found = why, target.remedies.get(op.name, USE_W8A8)
            elif not why and proof.complete:
                found = None
        output = file.name(op.outputs[0]) if op.outputs else ""
        if found is not None:
            operators.append(OperatorCheck(op.name, output, REFUSED, *found))
        elif summarized.is_float:
            words = "it computes real numbers"
            operators.append(OperatorCheck(op.name, output, FLOAT, words, USE_W8A8))
        else:
            operators.append(OperatorCheck(op.name, output, INTEGERS))
    return CheckReport(
        path=path,
        target=target.name,
        source=target.source,
        operators=operators,
        elsewhere=target.elsewhere,
        proved_by="" if proof is None else proof.tool,
        figures={} if proof is None else dict(proof.figures),
        install="" if target.tool_is_there() else target.package,
        notes=_free(summary, target),
    )


def _free(summary, target):
    """Returns what is the matter with free dimensions."""
    free = [name for name, _, shape in summary.inputs if -1 in shape]
    if not target.fixed_batch or not free:
        return []
    named = ", ".join(free)
    return [f"free dimensions of {named}: {target.summary} takes fixed ones. --file_batch 1"]


def _check_onnx(path, content) -> CheckReport:
    load()
    try:
        session = Session(content)
    except RuntimeError as error:
        raise ValueError(
            f"An .onnx file that ONNX Runtime runs is expected. Received: '{path}'. "
            f"{str(error).partition('ONNX Runtime says: ')[2]}"
        ) from error
    operators = []
    for node in session.optimized.node:
        output = node.output[0] if node.output else ""
        if computes(node.op_type):
            words = "its optimised graph computes it in float"
            operators.append(OperatorCheck(node.op_type, output, FLOAT, words, _of_onnx(node)))
        else:
            operators.append(OperatorCheck(node.op_type, output, INTEGERS))
    integer = sum(is_integer(node.op_type) for node in session.optimized.node)
    return CheckReport(
        path=path,
        target=ONNXRUNTIME,
        source="its optimised graph, on this processor",
        operators=operators,
        elsewhere="",
        proved_by="ONNX Runtime",
        figures={"integer kernels": f"{integer:,}"},
    )


def _of_onnx(node):
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return "scheme w8a8, --format onnx"
    return ""
