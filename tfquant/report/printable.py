"""What every report is: plain values, JSON, and tables of text."""

import abc
import dataclasses
import io
import json

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text


class Printable(abc.ABC):
    """A dataclass that `print` shows as tables and lines.

    A subclass says in `parts` what is shown.

    Attributes:
        width: Columns of text that it is printed in.
    """

    width = 110

    @abc.abstractmethod
    def parts(self):
        """Yields tables and lines, as `rich` prints them."""

    def to_dict(self) -> dict:
        """Returns the report as plain values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Returns the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __rich__(self):
        return Group(*self.parts())

    def __str__(self) -> str:
        console = Console(width=self.width, file=io.StringIO())
        console.print(self)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


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
