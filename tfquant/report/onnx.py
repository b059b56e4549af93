"""The report of a conversion to ONNX."""

import dataclasses

from rich.text import Text

from tfquant.report.conversion import ConversionReport


@dataclasses.dataclass(frozen=True)
class OnnxReport(ConversionReport):
    """What `to_onnx` did: a `ConversionReport` of what ONNX Runtime runs.

    Attributes:
        integer_operators: How often each operator of integers occurs in the graph that ONNX Runtime
            makes of the file.
        remarks: What else is to be known, in words.
    """

    integer_operators: dict[str, int] = dataclasses.field(default_factory=dict)
    remarks: list[str] = dataclasses.field(default_factory=list)

    def parts(self):
        """Yields tables and lines."""
        yield from super().parts()
        counted = ", ".join(f"{count} {name}" for name, count in self.integer_operators.items())
        yield Text(f"ONNX Runtime runs in integers: {counted or 'nothing'}")
        for remark in self.remarks:
            yield Text(remark)
