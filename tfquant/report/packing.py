"""The report of `to_packed`: what was packed, what stayed float, and the bytes of both."""

import dataclasses

from rich.text import Text

from tfquant.report.printable import Printable, notes, plain_table


@dataclasses.dataclass(frozen=True)
class PackedLayerReport:
    """A layer with weights.

    Attributes:
        name: Name of the Keras layer.
        kind: Its type.
        float_bytes: Size of its weights and biases in float32, batch norm folded.
        packed_bytes: Size of what takes their place.
        weight_bits: Width of its packed weights; `None` where they are float.
        activation_bits: Width of the integers that it multiplies with; `None` where they are float.
        reason: Why its weights stayed float; empty if they did not.
        group_size: Number of packed weights that share a scale; 0 for one scale per channel.
        note: Why it has a scale per channel under a scheme of groups; empty where it is not so.
    """

    name: str
    kind: str
    float_bytes: int
    packed_bytes: int
    weight_bits: int | None = None
    activation_bits: int | None = None
    reason: str = ""
    group_size: int = 0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class PackingReport(Printable):
    """What `to_packed` did.

    Attributes:
        name: Name of the model.
        layers: One `PackedLayerReport` for each layer with weights, in order.
    """

    width = 160

    name: str
    layers: list[PackedLayerReport]

    @property
    def float_bytes(self) -> int:
        """Size of all weights in float32."""
        return sum(layer.float_bytes for layer in self.layers)

    @property
    def packed_bytes(self) -> int:
        """Size of what takes their place."""
        return sum(layer.packed_bytes for layer in self.layers)

    @property
    def float_layers(self) -> list[PackedLayerReport]:
        """The layers whose weights stayed float."""
        return [layer for layer in self.layers if layer.reason]

    def parts(self):
        """Yields tables and lines."""
        table = plain_table()
        for name in ("layer", "type"):
            table.add_column(name, no_wrap=True)
        table.add_column("bits w/a", justify="right", no_wrap=True)
        table.add_column("scales", no_wrap=True)
        for name in ("float bytes", "packed bytes"):
            table.add_column(name, justify="right", no_wrap=True)
        for layer in self.layers:
            table.add_row(
                layer.name,
                layer.kind,
                f"{layer.weight_bits or 32}/{layer.activation_bits or '-'}",
                _scales(layer),
                f"{layer.float_bytes:,}",
                f"{layer.packed_bytes:,}",
            )
        yield table
        ratio = self.float_bytes / max(self.packed_bytes, 1)
        yield Text(
            f"{self.name}: {self.packed_bytes:,} bytes of weights, {ratio:.2f} times smaller than "
            f"float ({self.float_bytes:,})"
        )
        for layer in self.float_layers:
            yield Text(f"float: {layer.kind} {layer.name}: {layer.reason}")
        yield from notes(self.layers, "kind")


def _scales(layer):
    if layer.weight_bits is None:
        return ""
    return f"groups of {layer.group_size}" if layer.group_size else "per channel"
