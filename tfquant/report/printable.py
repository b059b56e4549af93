"""What every report is: plain values, JSON, and tables of text."""

import abc
import dataclasses
import io
import json
import math

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

# Of what `to_dict` returns; it grows when a field is renamed, removed or means something else.
SCHEMA_VERSION = 1

_HTML = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'


class Printable(abc.ABC):
    """A dataclass that `print` shows as tables and lines, and a notebook as HTML.

    A subclass says in `parts` what is shown.

    Attributes:
        width: Columns of text that it is printed in.
    """

    width = 110

    @abc.abstractmethod
    def parts(self):
        """Yields tables and lines, as `rich` prints them."""

    def to_dict(self) -> dict:
        """Returns the report as plain values, with its kind and the version of their schema.

        What is no finite number is `"inf"`, `"-inf"` or `"nan"`.
        """
        head = {"schema_version": SCHEMA_VERSION, "report": type(self).__name__}
        return {**head, **plain(dataclasses.asdict(self))}

    def to_json(self) -> str:
        """Returns the report as JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_dataframe(self):
        """Returns the layers, or operators, as a `pandas.DataFrame`, one row each.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("A table of pandas needs it: pip install pandas.") from error
        rows = getattr(self, "layers", None) or getattr(self, "operators", [])
        return pandas.json_normalize([dataclasses.asdict(row) for row in rows])

    def __rich__(self):
        return Group(*self.parts())

    def __str__(self) -> str:
        text = self._printed().file.getvalue()
        return "\n".join(line.rstrip() for line in text.splitlines())

    def _repr_html_(self) -> str:
        return self._printed(record=True).export_html(inline_styles=True, code_format=_HTML)

    def _printed(self, record: bool = False) -> Console:
        # In a notebook rich would show it there, and write nothing.
        settings = {"force_jupyter": False, "force_terminal": False, "color_system": None}
        console = Console(width=self.width, file=io.StringIO(), record=record, **settings)
        console.print(self)
        return console


def plain(value):
    """Returns plain values of JSON: lists for tuples, words for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def plain_table() -> Table:
    """Returns a table without lines."""
    return Table(box=None, header_style="bold", pad_edge=False)


def notes(layers, kind: str):
    """Yields a line for each layer that has a scale per channel where its scheme has groups.

    Args:
        layers: Reports of layers with a `name` and a `note`.
        kind: Name of the attribute that says what they are.
    """
    for layer in layers:
        if layer.note:
            named = f"{getattr(layer, kind)} {layer.name}"
            yield Text(f"a scale per channel: {named}: {layer.note}")
