"""`export_c`: a `.tflite` file as C++ source for TensorFlow Lite Micro."""

import dataclasses
import os
import re

from rich.text import Text

from tfquant.data.files import check_new_folder, new_folder
from tfquant.litert import micro
from tfquant.litert.flatbuffer import File
from tfquant.litert.inspect import checked_file, damage_named
from tfquant.report import Printable, plain_table

# What is left free of the arena: an eighth, and at least this. Kernels of a maker take room for
# themselves that the reference kernels do not, and pointers of 32 bits take half of those here.
MARGIN_SHARE, LEAST_MARGIN = 8, 1024

_BYTES_A_LINE = 12

# Methods of `MicroMutableOpResolver` whose names are not those of the operators in other letters.
_METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}


@dataclasses.dataclass(frozen=True)
class ExportReport(Printable):
    """What `export_c` wrote.

    Attributes:
        path: The folder.
        name: What names in the source begin with.
        files: Names of the files in it.
        operators: Methods of the resolver that register what the file uses.
        model_bytes: Size of the `.tflite` file.
        arena_bytes: Size of the arena that the header asks for.
        measured_bytes: Size of the smallest that the file runs in here, on 64 bits.
        margin_bytes: What is left free of it.
    """

    path: str
    name: str
    files: list[str]
    operators: list[str]
    model_bytes: int
    arena_bytes: int
    measured_bytes: int
    margin_bytes: int

    def parts(self):
        """Yields tables and lines."""
        table = plain_table()
        table.add_column("file")
        for name in self.files:
            table.add_row(os.path.join(self.path, name))
        yield table
        yield Text(f"flash: {self.model_bytes:,} bytes of model, beside the code")
        yield Text(
            f"arena: {self.arena_bytes:,} bytes: {self.measured_bytes:,} measured on the reference "
            f"kernels, {self.margin_bytes:,} of margin"
        )
        yield Text(f"operators: {', '.join(self.operators)}")


def export_c(path, folder, name: str | None = None) -> ExportReport:
    """Writes a `.tflite` file as C++ source for TensorFlow Lite Micro.

    The array is `g_NAME_model_data`, aligned to 16 bytes; `NAME_model_settings.h` has
    `kNAMEArenaSize` and a function that registers exactly the operators that the file uses. How
    large an arena it takes is measured: `pip install "tfquant[tflm]"`.

    Args:
        path: The file; it may come from any converter.
        folder: The folder to make. It appears when it is complete.
        name: What names begin with; the default is the file's.

    Returns:
        `ExportReport`; print it.

    Raises:
        ImportError: If TensorFlow Lite Micro's interpreter is not installed.
        OSError: If the file cannot be read, or the folder is there or cannot be made.
        ValueError: If it is no `.tflite` file, has an operator of somebody's own, or TensorFlow
            Lite Micro does not run it; or if `name` is no name in C.

    Example:

    ```python
    tfq.export_c("digits.tflite", "firmware/digits")
    ```
    """
    path, folder = os.fspath(path), os.fspath(folder)
    check_new_folder(folder)
    name = _name(path) if name is None else name
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(
            f"`name` must be letters, digits and underscores, a letter first. Received: {name!r}."
        )
    with open(path, "rb") as opened:
        content = opened.read()
    file = checked_file(content, path)
    with damage_named(path):
        operators = _methods(file)
    try:
        measured = micro.arena(content)
    except RuntimeError as error:
        raise ValueError(
            f"A file that TensorFlow Lite Micro runs is expected. Received: '{path}'. {error}"
        ) from error
    margin = max(LEAST_MARGIN, measured // MARGIN_SHARE)
    arena = -(-(measured + margin) // micro.ALIGNMENT) * micro.ALIGNMENT
    report = ExportReport(
        path=folder,
        name=name,
        files=[f"{name}_model_data.cc", f"{name}_model_data.h", f"{name}_model_settings.h"],
        operators=operators,
        model_bytes=len(content),
        arena_bytes=arena,
        measured_bytes=measured,
        margin_bytes=arena - measured,
    )
    texts = _source(name, content), _header(name, content), _settings(report)
    with new_folder(folder) as temporary:
        for written, text in zip(report.files, texts, strict=True):
            with open(os.path.join(temporary, written), "w", encoding="ascii") as opened:
                opened.write(text)
    return report


def _name(path):
    """Returns a name in C that is the file's."""
    stem = os.path.splitext(os.path.basename(path))[0]
    name = re.sub(r"\W+", "_", stem, flags=re.ASCII).strip("_").lower()
    return name if name[:1].isalpha() else f"model_{name}".rstrip("_")


def _methods(file: File) -> list[str]:
    """Returns the methods that register the operators of all subgraphs, sorted."""
    names = {op.name for op in file.ops}
    for graph in file.model.subgraphs[1:]:
        names |= {file.op_name(operator) for operator in graph.operators}
    return sorted(map(_method, names))


def _method(operator):
    parts = (part if part[0].isdigit() else part.capitalize() for part in operator.split("_"))
    return _METHODS.get(operator, f"Add{''.join(parts)}")


def _source(name, content):
    lines = [
        ", ".join(f"0x{byte:02x}" for byte in content[start : start + _BYTES_A_LINE])
        for start in range(0, len(content), _BYTES_A_LINE)
    ]
    values = ",\n    ".join(lines)
    return (
        f'#include "{name}_model_data.h"\n\n'
        f"alignas({micro.ALIGNMENT}) const unsigned char g_{name}_model_data[] = {{\n"
        f"    {values}}};\n"
    )


def _header(name, content):
    return (
        "#pragma once\n\n"
        f"constexpr unsigned int g_{name}_model_data_size = {len(content)};\n"
        f"extern const unsigned char g_{name}_model_data[];\n"
    )


def _settings(report):
    camel = "".join(x[:1].upper() + x[1:] for x in report.name.split("_"))
    calls = "\n".join(f"  TF_LITE_ENSURE_STATUS(resolver.{x}());" for x in report.operators)
    return (
        "#pragma once\n\n"
        '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"\n\n'
        f"// {report.measured_bytes} bytes measured, {report.margin_bytes} of margin.\n"
        f"constexpr int k{camel}ArenaSize = {report.arena_bytes};\n\n"
        f"using {camel}OpResolver = tflite::MicroMutableOpResolver<{len(report.operators)}>;\n\n"
        f"inline TfLiteStatus Register{camel}Ops({camel}OpResolver& resolver) {{\n"
        f"{calls}\n  return kTfLiteOk;\n}}\n"
    )
