"""`autoquantize`: schemes and efforts in the order of what they cost, until one serves."""

import dataclasses
import functools
import logging
import time
from typing import Any

import numpy as np
from rich.progress import Progress
from rich.text import Text

from tfquant.data.batches import batches, joined
from tfquant.optimize import quantize
from tfquant.reading.subclassed import readable
from tfquant.registry import Recipe
from tfquant.registry.recipe import FLOAT
from tfquant.report import Printable, plain_table
from tfquant.rewrite.validate import check_model
from tfquant.search.budget import Budget
from tfquant.search.controlled import Promiser
from tfquant.search.costs import file_bytes
from tfquant.search.search import search
from tfquant.sensitivity import Scoring, outputs_of

_logger = logging.getLogger("tfquant")

# What is lost at most where nobody says: half a point of accuracy.
MAX_DROP = 0.005

# One scheme for all layers, at rising effort.
PLAIN = (("w8a8", "fast"), ("w8a8", "default"), ("w8a8", "best"))
NARROW = (("w4a8", "default"), ("w4a8", "best"))

# What layers choose from where one for all does not serve: more bits, and fewer bytes.
WIDER, NARROWER = ("w8a8", "w8a16", FLOAT), ("w8a8", "w4a8")


@dataclasses.dataclass(frozen=True)
class Step:
    """One attempt.

    Attributes:
        scheme: Name of the scheme, or those that layers chose from, with `|` between them.
        effort: Effort.
        score: Metric on the validation rows; `None` where nothing came out.
        bytes: Bytes of the file; likewise.
        seconds: Time that it took.
        holds: Whether it is what was asked for.
        why: Why it is not, in words.
    """

    scheme: str
    effort: str
    score: float | None
    bytes: int | None
    seconds: float
    holds: bool
    why: str = ""


@dataclasses.dataclass(frozen=True)
class AutoResult(Printable):
    """What `autoquantize` found, and the way it went.

    Attributes:
        name: Name of the model.
        target: `Budget`.
        metric: Name of the metric.
        float_score: Metric of the float model on the validation rows.
        score: That of the quantized one.
        bytes: Bytes of its file.
        holds: Whether it is what was asked for, on the validation rows.
        promise: `Promise`: what these rows say of others.
        steps: The `Step`s, in order.
        model: The quantized model, calibrated.
        recipe: Its `Recipe`.
    """

    name: str
    target: Budget
    metric: str
    float_score: float
    score: float
    bytes: int
    holds: bool
    promise: Any
    steps: list[Step]
    model: Any = dataclasses.field(repr=False, compare=False)
    recipe: Recipe = dataclasses.field(repr=False)

    def to_dict(self) -> dict:
        """Returns the report as plain values; of the model there is the recipe."""
        found = Printable.to_dict(dataclasses.replace(self, model=None, recipe=None))
        return {**found, "recipe": self.recipe.get_config()}

    def parts(self):
        """Yields tables and lines."""
        table = plain_table()
        for head in ("scheme", "effort"):
            table.add_column(head, no_wrap=True)
        for head in (self.metric, "bytes", "seconds"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("")
        for step in self.steps:
            score = "" if step.score is None else f"{step.score:.4f}"
            size = "" if step.bytes is None else f"{step.bytes:,}"
            outcome = "holds" if step.holds else step.why
            table.add_row(
                step.scheme, step.effort, score, size, f"{step.seconds:.1f}", Text(outcome)
            )
        yield table
        kept = "within" if self.holds else "not within"
        yield Text(
            f"{self.name}: {self.metric} {self.score:.4f} of {self.float_score:.4f} in float, "
            f"{self.bytes:,} bytes, {kept} {self.target}"
        )
        yield Text(self.promise.words)


def autoquantize(
    model,
    calibration,
    validation,
    metric=None,
    target=None,
    *,
    device: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> AutoResult:
    """Tries schemes and efforts in the order of what they cost, until the target holds.

    First 8 bits throughout, at rising effort; where that is too large, 4 bits; where one scheme for
    all layers does not serve, `search` finds a mixture: of 4 and 8 bits for bytes, of 8 bits,
    16-bit activations and float for the metric. Where nothing serves, the best that fits is
    returned, and a warning says so.

    Args:
        model: Float model, as of `quantize_model`.
        calibration: Rows as of `calibrate`, without labels; 512 to 1024 serve.
        validation: `(x, y)`: other rows, with answers.
        metric: Function of the answers and the outputs of the model, arrays, of which more is
            better; `None` for the share of right predictions.
        target: The least metric, a number; or a `Budget` of `max_drop` and `bytes`; `None` for a
            `max_drop` of 0.005.
        device: As of `quantize_model`.
        batch_size: Rows to compute at once.
        seed: Of what is drawn by chance.
        progress: Whether to show a progress bar.

    Returns:
        `AutoResult`; print it for the way that it went. Its `model` is calibrated.

    Raises:
        TypeError: If the target or the metric is nothing of the above.
        ValueError: If the target is beyond the float model, has other bounds, or the smallest file
            is larger than it allows; if the data do not fit, or the metric raises or returns no
            finite number.

    Example:

    ```python
    found = tfq.autoquantize(model, images[:512], (images[512:], labels[512:]))
    tfq.to_tflite(found.model, "model.tflite")
    ```
    """
    model = readable(model)
    check_model(model)
    scoring = Scoring(model, validation, metric)
    expected = outputs_of(model, scoring.arrays)
    float_score = scoring(expected)
    budget = _budget(target, float_score)
    parts = list(batches(calibration, model.inputs, batch_size))
    samples = joined(parts)
    settings = {"device": device, "batch_size": batch_size, "seed": seed}
    settings["progress"] = False
    promiser = Promiser(scoring, expected, budget.max_drop)
    run = _Run(model, samples, validation, metric, budget, promiser, settings)
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("Quantizing", total=None)
        run.go(lambda words: bar.update(task, description=f"Quantizing: {words}"))
    q, promise, size, holds = run.best
    if not holds:
        _logger.warning(
            "Nothing that was tried is within %s. The best has a drop of %.4g and %s bytes.",
            budget,
            promise.drop,
            f"{size:,}",
        )
    return AutoResult(
        model.name,
        budget,
        scoring.name,
        float_score,
        float_score - promise.drop,
        size,
        holds,
        promise,
        run.steps,
        q,
        q.recipe,
    )


def _budget(target, float_score) -> Budget:
    """Returns what is asked for as a budget with a `max_drop`."""
    if target is None:
        return Budget(max_drop=MAX_DROP)
    if isinstance(target, Budget):
        if target.bops is not None:
            raise ValueError(
                "`target` must be a budget of max_drop and bytes; tfq.search takes bit operations. "
                f"Received: {target}."
            )
        drop = MAX_DROP if target.max_drop is None else target.max_drop
        return dataclasses.replace(target, max_drop=drop)
    if isinstance(target, bool) or not isinstance(target, int | float | np.number):
        raise TypeError(f"`target` must be a number, a tfq.Budget or None. Received: {target!r}.")
    if not target <= float_score:
        raise ValueError(
            "`target` must be a score that the float model has on the validation rows: at most "
            f"{float_score:.6g}. Received: {target!r}."
        )
    return Budget(max_drop=float(float_score - target))


class _Run:
    """Goes through what may serve."""

    def __init__(self, model, samples, validation, metric, budget, promiser, settings):
        self._model, self._samples = model, samples
        self._validation, self._metric = validation, metric
        self._budget, self._promiser, self._settings = budget, promiser, settings
        self.steps, self.best = [], None
        self._smallest = None

    def go(self, tell) -> None:
        """Tries one after the other until one holds."""
        for scheme, effort in PLAIN:
            tell(f"{scheme}, {effort}")
            if self._try(scheme, effort, self._plain):
                return
            if not self._fits(self.steps[-1]):
                break  # More effort has the same bytes.
        else:
            tell(f"{' | '.join(WIDER)}, default")
            wider = Budget(bytes=self._budget.bytes, max_drop=self._budget.max_drop)
            self._try(WIDER, "default", functools.partial(self._mixed, wider))
            return
        for scheme, effort in NARROW:
            tell(f"{scheme}, {effort}")
            if self._try(scheme, effort, self._plain):
                return
        if self._budget.bytes < self._smallest:
            raise ValueError(
                f"A target that some scheme keeps is expected. Received: {self._budget}; the "
                f"smallest file has {self._smallest:,} bytes."
            )
        tell(f"{' | '.join(NARROWER)}, best")
        narrower = Budget(bytes=self._budget.bytes)
        self._try(NARROWER, "best", functools.partial(self._mixed, narrower))

    def _fits(self, step):
        bound = self._budget.bytes
        return bound is None or (step.bytes is not None and step.bytes <= bound)

    def _plain(self, scheme, effort):
        q = quantize(self._model, self._samples, scheme, effort=effort, **self._settings)
        return q, file_bytes(q)

    def _mixed(self, budget, choices, effort):
        found = search(
            self._model,
            self._samples,
            budget,
            choices,
            validation=self._validation,
            metric=self._metric,
            effort=effort,
            **self._settings,
        )
        return found.model, found.bytes

    def _try(self, scheme, effort, make) -> bool:
        began = time.monotonic()
        name = scheme if isinstance(scheme, str) else " | ".join(scheme)
        try:
            q, size = make(scheme, effort)
        except ValueError as error:
            if isinstance(scheme, str):
                raise
            seconds = time.monotonic() - began
            self.steps.append(Step(name, effort, None, None, seconds, False, str(error)))
            return False
        promise = self._promiser.promise_of(outputs_of(q, self._promiser.scoring.arrays))
        score = self._promiser.float_score - promise.drop
        why = []
        if self._budget.bytes is not None and size > self._budget.bytes:
            why.append(f"{size - self._budget.bytes:,} bytes too many")
        if promise.drop > self._budget.max_drop:
            why.append(f"drops {promise.drop:.4g}")
        holds, seconds = not why, time.monotonic() - began
        self.steps.append(Step(name, effort, score, size, seconds, holds, ", ".join(why)))
        self._smallest = min(size, self._smallest or size)
        if self.best is None or self._rank(size, promise) < self._rank(self.best[2], self.best[1]):
            self.best = q, promise, size, holds
        return holds

    def _rank(self, size, promise):
        """Says what is better: what fits, then what drops less."""
        bound = self._budget.bytes
        return (bound is not None and size > bound, promise.drop)
