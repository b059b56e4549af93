"""What `sensitivity` found, as plain values, a table and a plot."""

import dataclasses
import html

from rich.text import Text

from tfquant.report import Printable, plain_table
from tfquant.sensitivity.advice import Advice

# Width of a plot, of its names, and height of a row.
WIDTH, NAMES, ROW = 900, 260, 22
COLOURS = ("#1f5fa8", "#d9822b", "#3a8f5b", "#a83a5c", "#6b5bab", "#7a7a7a")


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing a layer costs.

    Attributes:
        name: Name of the layer, as a recipe calls it.
        kind: Its type.
        parameters: Number of its quantized weights; 0 for what only computes.
        sqnr: Dict from schemes to the signal to noise ratio of the model's outputs in dB: where
            this layer alone is quantized (`mode="one"`), or all but this one.
        noise_share: Dict from schemes to the layer's share of the noise of all layers, one at a
            time; with `mode="all_but_one"`, of the noise that goes with it.
        score: Dict from schemes to the metric on validation rows; empty without them.
        trace: What the outputs make of a change of its weights: see `gradient.curvature`; `None`
            where gradients were not asked for.
        predicted: Dict from schemes to the ratio in dB that gradients predict for its weights.
        same_as: Dict from schemes to the one that gives the layer the same widths on the device.
    """

    name: str
    kind: str
    parameters: int
    sqnr: dict[str, float]
    noise_share: dict[str, float]
    score: dict[str, float]
    trace: float | None
    predicted: dict[str, float]
    same_as: dict[str, str]

    @property
    def worst(self) -> float:
        """The lowest ratio of all schemes."""
        return min(self.sqnr.values(), default=float("inf"))


@dataclasses.dataclass(frozen=True)
class Sensitivity(Printable):
    """What quantizing each layer of a model costs.

    Attributes:
        model: Name of the model.
        mode: `"one"`: one layer is quantized at a time; `"all_but_one"`: all but one.
        choices: Names of the schemes.
        rows: Number of rows that outputs were compared on.
        whole: Dict from schemes to the ratio of the outputs where all layers have it.
        layers: `LayerSensitivity`s, the worst first.
        advice: `Advice`, the most helpful first.
        float_score: Metric of the float model on validation rows; `None` without them.
        whole_score: Dict from schemes to that of the model where all layers have it.
        metric: Name of the metric.
    """

    model: str
    mode: str
    choices: list[str]
    rows: int
    whole: dict[str, float]
    layers: list[LayerSensitivity]
    advice: list[Advice]
    float_score: float | None = None
    whole_score: dict[str, float] = dataclasses.field(default_factory=dict)
    metric: str = ""

    @property
    def noisiest(self) -> str:
        """The scheme by which layers are ranked: that with the most noise."""
        return min(self.choices, key=lambda x: self.whole[x])

    def parts(self):
        """Yields tables and lines."""
        table, scored = plain_table(), self.float_score is not None
        table.add_column("layer", no_wrap=True, overflow="ellipsis")
        table.add_column("type", no_wrap=True)
        table.add_column("weights", justify="right", no_wrap=True)
        for choice in self.choices:
            table.add_column(f"{choice} dB", justify="right", no_wrap=True)
        table.add_column("noise", justify="right", no_wrap=True)
        if scored:
            for choice in self.choices:
                table.add_column(f"{choice} {self.metric}", justify="right", no_wrap=True)
        traced = any(layer.trace is not None for layer in self.layers)
        if traced:
            table.add_column("trace", justify="right", no_wrap=True)
        for layer in self.layers:
            cells = [_number(layer.sqnr.get(x)) for x in self.choices]
            share = layer.noise_share.get(self.noisiest)
            cells.append("" if share is None else f"{share:.1%}")
            if scored:
                cells += [_number(layer.score.get(x), 4) for x in self.choices]
            if traced:
                cells.append("" if layer.trace is None else f"{layer.trace:.3g}")
            parameters = f"{layer.parameters:,}" if layer.parameters else ""
            table.add_row(Text(layer.name), layer.kind, parameters, *cells)
        yield table
        what = "one layer quantized at a time" if self.mode == "one" else "all but one quantized"
        yield Text(f"{self.model}: outputs in dB on {self.rows} rows, {what}")
        whole = ", ".join(f"{x} {self.whole[x]:.1f}" for x in self.choices)
        yield Text(f"all layers: {whole} dB")
        if scored:
            scores = ", ".join(f"{x} {score:.4f}" for x, score in self.whole_score.items())
            yield Text(f"{self.metric}: float {self.float_score:.4f}, all layers: {scores}")
        for advice in self.advice:
            yield Text(advice.words)

    def plot(self, path) -> None:
        """Writes a plot of the noise of each layer, worst first, as an `.svg` file.

        Raises:
            ValueError: If the name ends otherwise.
        """
        path = str(path)
        if not path.endswith(".svg"):
            raise ValueError(f"A file named .svg is expected for a plot. Received: '{path}'.")
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.to_svg())

    def to_svg(self) -> str:
        """Returns the plot as text: a bar for each layer and scheme, longer for more noise."""
        layers = [layer for layer in self.layers if layer.sqnr]
        values = [v for layer in layers for v in layer.sqnr.values()]
        top = max(10.0, *values, *self.whole.values()) if values else 10.0
        low = min(0.0, *values) if values else 0.0
        bar = max(4, (ROW - 6) // len(self.choices) + 2)
        step = bar * len(self.choices) + 8
        height = 70 + step * len(layers)
        scale = (WIDTH - NAMES - 90) / max(top - low, 1e-9)
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            f'<text x="10" y="20" font-size="14">{html.escape(self.model)}: outputs in dB below '
            f"{top:.0f}, {html.escape(self.mode.replace('_', ' '))} quantized; longer is "
            "worse</text>",
        ]
        for number, choice in enumerate(self.choices):
            x, colour = 10 + 120 * number, COLOURS[number % len(COLOURS)]
            lines.append(f'<rect x="{x}" y="32" width="10" height="10" fill="{colour}"/>')
            lines.append(f'<text x="{x + 14}" y="42">{html.escape(choice)}</text>')
        for row, layer in enumerate(layers):
            y = 58 + row * step
            name = layer.name if len(layer.name) < 36 else f"...{layer.name[-32:]}"
            lines.append(
                f'<text x="{NAMES}" y="{y + step / 2 + 1:.0f}" text-anchor="end">'
                f"{html.escape(name)}</text>"
            )
            for number, choice in enumerate(self.choices):
                value = layer.sqnr.get(choice)
                if value is None:
                    continue
                width, colour = (top - value) * scale, COLOURS[number % len(COLOURS)]
                place = y + number * bar
                lines.append(
                    f'<rect x="{NAMES + 8}" y="{place}" width="{width:.1f}" height="{bar - 1}" '
                    f'fill="{colour}"/>'
                )
                lines.append(
                    f'<text x="{NAMES + 12 + width:.1f}" y="{place + bar - 1}" '
                    f'font-size="{bar + 2}">{value:.1f}</text>'
                )
        return "\n".join([*lines, "</svg>", ""])


def _number(value, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
