"""`search`: which scheme each layer of a model has, within a budget."""

import dataclasses
import math

from tfquant.board import check_choices
from tfquant.optimize import quantize
from tfquant.registry.recipe import FLOAT
from tfquant.search.budget import Budget
from tfquant.search.controlled import Controlled
from tfquant.search.costs import Costs, file_bytes
from tfquant.search.mixtures import Mixtures
from tfquant.search.report import SearchResult
from tfquant.sensitivity import Study, check_effort, outputs_of, showing

# How often a mixture is looked for again whose file has more bytes than were reckoned.
ATTEMPTS = 6

# Budgets between the smallest and the largest file whose best mixture is measured for the front.
LEVELS = 6


def search(
    model,
    data,
    budget: Budget,
    choices=("w8a8", "w4a8"),
    *,
    validation=None,
    metric=None,
    ties=(),
    effort: str = "default",
    device: str | None = None,
    evaluations: int = 96,
    cache=None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> SearchResult:
    """Finds the scheme of each layer such that a model keeps a budget and its outputs stay close.

    What each layer costs the outputs under each scheme is measured one at a time. An integer
    program takes the best mixture by these figures; since they do not add up below 4 bits, its
    neighbours are then measured, and the best taken, until none is better. With `max_drop`, the
    smallest mixture is looked for whose metric on the validation rows is that near to the float
    model's.

    Args:
        model: Float model, as of `quantize_model`.
        data: Rows as of `calibrate`, without labels.
        budget: `Budget`.
        choices: Schemes that layers choose from: names, `Scheme`s, `"float"`. Of those that are the
            same to a layer on the device, the first is taken.
        validation: `(x, y)`: rows with answers. Needed for `max_drop`; else scored in the end.
        metric: Function of the answers and the outputs of the model, arrays, of which more is
            better; `None` for the share of right predictions.
        ties: Lists of names of layers that are to have one scheme.
        effort: As of `quantize`: how ranges and integers are found, for measuring and in the model.
        device: As of `quantize_model`.
        evaluations: How many mixtures are measured at most behind the integer program.
        cache: File to keep figures in; see `sensitivity`.
        batch_size: Rows to compute at once.
        seed: Of what is drawn by chance.
        progress: Whether to show a progress bar.

    Returns:
        `SearchResult`; print it. Its `recipe` and calibrated `model` keep the budget.

    Raises:
        TypeError: If the budget is no `Budget`, or as `sensitivity`.
        ValueError: If no mixture keeps the budget: the error names the nearest. If a tie names a
            layer that has no choice; and as `sensitivity`.

    Example:

    ```python
    found = tfq.search(model, images, tfq.Budget(bytes=60_000), ["w8a8", "w4a8"])
    tfq.to_tflite(found.model, "model.tflite")
    ```
    """
    if not isinstance(budget, Budget):
        raise TypeError(f"`budget` must be a tfq.Budget. Received: {budget!r}.")
    check_effort(effort)
    given = check_choices(choices)
    if budget.max_drop is not None and validation is None:
        raise ValueError(
            "`validation=(x, y)` is needed for max_drop. Received: "
            f"max_drop={budget.max_drop:g} without."
        )
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 0:
        raise ValueError(
            f"`evaluations` must be a whole number from 0 on. Received: {evaluations!r}."
        )
    settings = {"effort": effort, "device": device, "batch_size": batch_size, "seed": seed}
    study = Study(model, data, given, validation=validation, metric=metric, cache=cache, **settings)
    with showing("Search", progress) as study.progress:
        costs = Costs(study.board)
        mixtures = Mixtures(study, costs, list(given), ties)
        if budget.max_drop is not None:
            return _controlled(study, costs, mixtures, budget, settings)
        return _within(study, costs, mixtures, budget, settings, evaluations)


def _within(study, costs, mixtures, budget, settings, evaluations):
    """Looks for the closest outputs within bytes and bit operations."""
    bounds = [budget.bytes or math.inf, budget.bops or math.inf]
    reckoned = list(bounds)
    mixtures.check(bounds, budget)
    for attempt in range(ATTEMPTS):
        start = mixtures.solve(reckoned)
        if start is None:
            break
        study.progress.tell("mixtures")
        best = mixtures.refine(start, reckoned, evaluations if not attempt else evaluations // 4)
        study.progress.tell("building")
        q, size = _build(study, mixtures, best, settings)
        if budget.bytes is None or size <= budget.bytes:
            for level in mixtures.levels(LEVELS):
                mixtures.measure(level)
            return _result(study, costs, mixtures, budget, best, q, size, None)
        reckoned[0] = mixtures.bytes(best) - (size - budget.bytes)
    smallest = mixtures.solve([mixtures.smallest_bytes(), math.inf]) or mixtures.smallest()
    _, size = _build(study, mixtures, smallest, settings)
    raise ValueError(
        f"A budget that some mixture keeps is expected. Received: {budget}; the smallest file of "
        f"these choices has {size:,} bytes."
    )


def _controlled(study, costs, mixtures, budget, settings):
    """Looks for the smallest mixture with a drop that is allowed."""
    control = Controlled(study, mixtures, budget)
    chosen = control.run()
    for _ in range(ATTEMPTS):
        study.progress.tell("building")
        q, size = _build(study, mixtures, chosen, settings)
        promise = control.promise_of(outputs_of(q, study.scoring.arrays))
        wider = None if promise.kept else control.wider(chosen)
        if wider is None:
            break
        chosen = wider
    if promise.drop > budget.max_drop:
        raise ValueError(
            f"A budget that some mixture keeps is expected. Received: {budget}; the nearest drops "
            f"{promise.drop:.4g} on {promise.rows} validation rows, with {size:,} bytes."
        )
    beyond = []
    if budget.bytes is not None and size > budget.bytes:
        beyond.append(f"{size:,} bytes")
    bops = costs.bops(mixtures.full(chosen))
    if budget.bops is not None and bops > budget.bops:
        beyond.append(f"{bops:.4g} bit operations")
    if beyond:
        raise ValueError(
            f"A budget that some mixture keeps is expected. Received: {budget}; the smallest that "
            f"was found with that drop has {' and '.join(beyond)}."
        )
    return _result(study, costs, mixtures, budget, chosen, q, size, promise)


def _build(study, mixtures, chosen, settings):
    """Returns the model of a mixture, calibrated, and the bytes of its file."""
    recipe = study.board.recipe(mixtures.full(chosen))
    q = quantize(study.model, study.samples, recipe, progress=False, **settings)
    return q, file_bytes(q)


def _result(study, costs, mixtures, budget, chosen, q, size, promise):
    full = mixtures.full(chosen)
    score = float_score = None
    if study.scoring is not None:
        score = study.scoring(outputs_of(q, study.scoring.arrays))
        float_score = study.score("float", lambda: study.board.everywhere(FLOAT))
    measured = mixtures.measure(chosen)
    return SearchResult(
        study.model.name,
        budget,
        {name: full[name] for name in costs.weighted},
        size,
        costs.bops(full),
        measured.sqnr,
        score,
        float_score,
        promise,
        [dataclasses.replace(x) for x in mixtures.candidates.values()],
        q,
        q.recipe,
    )
