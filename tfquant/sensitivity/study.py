"""`Study`: a model and rows, and what was measured of them, each figure once."""

import contextlib
import dataclasses
import functools
import math

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tfquant.board import Board, Stage, check_choices
from tfquant.data.batches import batches, joined
from tfquant.optimize import EFFORTS
from tfquant.reading.subclassed import readable
from tfquant.rewrite.validate import check_model
from tfquant.sensitivity.advice import advise
from tfquant.sensitivity.gradient import curvature
from tfquant.sensitivity.notebook import Notebook, content_key
from tfquant.sensitivity.scoring import Scoring, outputs_of

# Rows that outputs are compared on, and activations that are computed of them at most.
ROWS, VALUES = 64, 1.5e8

# The ratio of outputs that are as good as the float model's, in dB: no noise.
LARGEST = 120.0


def check_effort(effort) -> None:
    """Raises unless an effort is known.

    Raises:
        ValueError: If it is not.
    """
    if effort not in EFFORTS:
        names = ", ".join(map(repr, EFFORTS))
        raise ValueError(f"`effort` must be one of {names}. Received: {effort!r}.")


@dataclasses.dataclass
class Progressing:
    """What a long measurement says of itself.

    Attributes:
        tell: Function of words that say what is being done.
        begin: Function of a number of steps to come.
        advance: Function that says that one is done.
    """

    tell: object = lambda words: None
    begin: object = lambda total: None
    advance: object = lambda: None


@contextlib.contextmanager
def showing(words: str, progress: bool):
    """Yields a `Progressing` that a bar shows, with the time that is left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, disable=not progress) as bar:
        task = bar.add_task(words, total=None)
        yield Progressing(
            lambda what: bar.update(task, description=f"{words}: {what}"),
            lambda total: bar.update(task, total=total, completed=0),
            lambda: bar.advance(task),
        )


class Study:
    """Measurements of a model, each made once.

    Args:
        model: Float model.
        data: As of `sensitivity`.
        choices: From `check_choices`.
        validation: As of `sensitivity`, or `None`.
        metric: Likewise.
        extra: Names of schemes that may help.
        effort: As of `sensitivity`; so are the others.
        device: See there.
        cache: See there.
        batch_size: See there.
        seed: See there.

    Attributes:
        scoring: `Scoring`, or `None`.
        samples: The rows, one array for each input.
        choices: The choices, with those of `extra` that are others.
    """

    def __init__(
        self,
        model,
        data,
        choices,
        *,
        validation=None,
        metric=None,
        extra=(),
        effort="default",
        device=None,
        cache=None,
        batch_size=32,
        seed=0,
    ):
        if metric is not None and validation is None:
            raise ValueError(
                "`validation=(x, y)` is needed to measure a metric. Received: a metric without."
            )
        self.model = readable(model)
        check_model(self.model)
        parts = list(batches(data, self.model.inputs, batch_size))
        self.samples = joined(parts)
        self.scoring = fingerprint = None
        if validation is not None:
            self.scoring = Scoring(self.model, validation, metric)
            # A metric that fails does so before the work.
            fingerprint = self.scoring.fingerprint(outputs_of(self.model, self.scoring.arrays))
        more = [x for x in extra if x not in choices]
        if more and any(scheme is not None and scheme.static for scheme in choices.values()):
            choices = {**choices, **check_choices(more)}
        self.choices = choices
        self._settings = {"effort": effort, "device": device, "seed": seed}
        self._batch_size = batch_size
        self.progress = Progressing()
        key = ""
        if cache is not None:
            named = [repr(scheme) for scheme in choices.values()]
            rows = [] if self.scoring is None else [*self.scoring.arrays, *self.scoring.answers]
            named += [self._settings, batch_size, fingerprint]
            key = content_key(self.model, self.samples, rows, named)
        self.notebook = Notebook(cache, key)

    @functools.cached_property
    def board(self) -> Board:
        """The `Board`, made when something is to be measured on it."""
        return Board(
            self.model,
            self.samples,
            self.choices,
            batch_size=self._batch_size,
            tell=self.progress.tell,
            **self._settings,
        )

    @functools.cached_property
    def stage(self) -> Stage:
        """The `Stage` of the rows that outputs are compared on."""
        size = self.model.inputs[0].shape[0] or 1
        room = max(size, int(VALUES / max(self.board.values_per_row, 1)))
        rows = min(max(ROWS, size), room)
        return Stage(self.board, [x[:rows] for x in self.samples])

    @functools.cached_property
    def validation_stage(self) -> Stage:
        """The `Stage` of the validation rows."""
        return Stage(self.board, self.scoring.arrays)

    def sqnr(self, name: str, chosen) -> float:
        """Returns the ratio of the outputs under choices, noted under a name.

        Args:
            name: Name of the figure.
            chosen: Function that returns a dict from the names of all layers to choices.
        """
        return self.notebook.get(f"sqnr {name}", lambda: _finite(self.stage.sqnr(chosen())))

    def score(self, name: str, chosen) -> float:
        """Returns the metric under choices, noted under a name; see `sqnr`."""
        compute = lambda: self.scoring(self.validation_stage.outputs(chosen())[1])  # noqa: E731
        return self.notebook.get(f"score {name}", compute)

    @functools.cached_property
    def units(self) -> list[dict]:
        """The layers: dicts of the fields of `Unit`."""
        describe = lambda: [dataclasses.asdict(unit) for unit in self.board.units.values()]  # noqa: E731
        return self.notebook.get("units", describe)

    def curvature(self) -> tuple[dict, dict]:
        """Returns what gradients say of the layers; see there."""
        compute = lambda: curvature(self.board, self.samples, self._settings["seed"])  # noqa: E731
        return self.notebook.get("curvature", compute)

    def advice(self, order, reference) -> list[dict]:
        """Returns advice for the layers in `order`, as plain values; see `advise`."""
        compute = lambda: [  # noqa: E731
            dataclasses.asdict(x) for x in advise(self.board, self.stage, order, reference)
        ]
        return self.notebook.get(f"advice {reference}", compute)

    def rows(self) -> int:
        """Returns the number of rows that outputs are compared on."""
        return self.notebook.get("rows", lambda: self.stage.rows)


def _finite(x):
    return x if math.isfinite(x) else -LARGEST
