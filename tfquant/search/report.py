"""What a search found, as plain values and tables."""

import dataclasses
from typing import Any

from rich.text import Text

from tfquant.registry import Recipe
from tfquant.report import Printable, plain_table
from tfquant.search.budget import Budget


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mixture that was measured.

    Attributes:
        choices: Dict from the names of layers with weights to schemes.
        bytes: About the bytes of its file.
        bops: Its bit operations.
        sqnr: Signal to noise ratio of the model's outputs in dB.
        score: Metric on validation rows; `None` where it was not measured.
    """

    choices: dict[str, str]
    bytes: int
    bops: float
    sqnr: float
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class Promise:
    """What validation rows say of a drop.

    Attributes:
        drop: By how much the metric of the quantized model is lower than the float model's.
        deviation: Standard deviation of that drop over rows like these.
        resolution: That of a score alone: what so many rows cannot tell apart.
        rows: Number of validation rows.
        most: The drop that was allowed.
        kept: Whether the drop is allowed in nine of ten sets of rows like these.
        words: All of it in words.
    """

    drop: float
    deviation: float
    resolution: float
    rows: int
    most: float
    kept: bool
    words: str


@dataclasses.dataclass(frozen=True)
class SearchResult(Printable):
    """What a search found.

    Attributes:
        name: Name of the model.
        budget: `Budget`.
        choices: Dict from the names of layers with weights to schemes.
        bytes: Bytes of the `.tflite` file, which was written once to count them.
        bops: Bit operations.
        sqnr: Signal to noise ratio of the outputs in dB, on rows of the calibration.
        score: Metric of the model on validation rows; `None` without them.
        float_score: That of the float model.
        promise: `Promise`, where the budget has a `max_drop`; else `None`.
        candidates: Every `Candidate` that was measured.
        model: The quantized model, calibrated.
        recipe: Its `Recipe`.
    """

    name: str
    budget: Budget
    choices: dict[str, str]
    bytes: int
    bops: float
    sqnr: float
    score: float | None
    float_score: float | None
    promise: Promise | None
    candidates: list[Candidate]
    model: Any = dataclasses.field(repr=False, compare=False)
    recipe: Recipe = dataclasses.field(repr=False)

    @property
    def front(self) -> list[Candidate]:
        """The candidates that none betters in bytes, bit operations and closeness, smallest first.

        Each was measured.
        """
        found = []
        for x in sorted(self.candidates, key=lambda x: (x.bytes, x.bops, -x.sqnr)):
            if not any(y.bops <= x.bops and y.sqnr >= x.sqnr for y in found):
                found.append(x)
        return found

    def to_dict(self) -> dict:
        """Returns the report as plain values; of the model there is the recipe."""
        fields = dataclasses.replace(self, model=None, recipe=None)
        found = Printable.to_dict(fields)
        found["front"] = [dataclasses.asdict(x) for x in self.front]
        return {**found, "recipe": self.recipe.get_config()}

    def parts(self):
        """Yields tables and lines."""
        table = plain_table()
        table.add_column("layer", no_wrap=True, overflow="ellipsis")
        table.add_column("scheme", no_wrap=True)
        for name, choice in self.choices.items():
            table.add_row(Text(name), choice)
        yield table
        front, scored = plain_table(), any(x.score is not None for x in self.front)
        for head in ("bytes", "bit operations", "dB", *(["score"] if scored else [])):
            front.add_column(head, justify="right", no_wrap=True)
        for x in self.front:
            score = [] if not scored else ["" if x.score is None else f"{x.score:.4f}"]
            front.add_row(f"{x.bytes:,}", f"{x.bops:.4g}", f"{x.sqnr:.1f}", *score)
        yield Text(f"front of {len(self.candidates)} mixtures that were measured:")
        yield front
        score = ""
        if self.score is not None:
            score = f", score {self.score:.4f} of {self.float_score:.4f} in float"
        yield Text(
            f"{self.name} within {self.budget}: {self.bytes:,} bytes, {self.bops:.4g} bit "
            f"operations, {self.sqnr:.1f} dB{score}"
        )
        if self.promise is not None:
            yield Text(self.promise.words)
