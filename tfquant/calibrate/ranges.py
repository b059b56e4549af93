"""Ranges whose rare values are kept or clipped by what that does to the model's outputs."""

from tfquant.calibrate.judge import Sqnr

# Activations that are computed for each comparison of all rows; else those kept out are compared.
JUDGED_VALUES = 6e7

# Activations that may be computed to choose tensor by tensor, and how many comparisons at most.
SINGLE_VALUES = 2e7
MOST_SINGLE = 8

# A range takes another's place only if outputs gain more than chance would give, in dB.
LEAST_GAIN = 0.25


def choose_ranges(choices, judge, values_per_row: int) -> Sqnr | None:
    """Chooses between ranges where rare values would make one much wider.

    No statistic of a tensor says whether its rare values matter. First one kind of range is taken
    for all such tensors, the one with the best outputs; then, where the model is small, one tensor
    after the other may take another, those with the most different ranges first.

    Args:
        choices: The `Choice`s, from `Watch`.
        judge: `Judge` of the model, whose grids are set.
        values_per_row: Activations that the model computes for a row.

    Returns:
        `Sqnr` of the model as it is left; `None` where there was nothing to choose.
    """
    if not choices:
        return None
    values = len(judge.rows) * values_per_row
    every = values <= JUDGED_VALUES
    if not every:
        values = (judge.rows.kept_out or len(judge.rows)) * values_per_row
    sqnr = lambda: judge.sqnr(every)  # noqa: E731
    best = _together(choices, sqnr)
    if len(choices) > 1:
        return _one_by_one(
            choices, sqnr, best, min(int(SINGLE_VALUES / max(values, 1)), MOST_SINGLE)
        )
    return best


def _together(choices, sqnr) -> Sqnr:
    """Takes the kind of range that serves outputs best; returns their ratio."""
    best, ratio = choices[0].taken, sqnr()
    for name in ("min_max", "mean_squared_error"):
        _take(choices, name)
        found = sqnr()
        if found.computed > ratio.computed + LEAST_GAIN:
            best, ratio = name, found
        elif name == "min_max":
            break  # Nothing is made of the rare values: no need to weigh them.
    _take(choices, best)
    return ratio


def _one_by_one(choices, sqnr, best, comparisons) -> Sqnr:
    tried = [(choice, name) for choice in choices for name in choice.names]
    for choice, name in tried[:comparisons]:
        before = choice.taken
        if name == before:
            continue
        choice.take(name)
        ratio = sqnr()
        if ratio.computed > best.computed + LEAST_GAIN:
            best = ratio
        else:
            choice.take(before)
    return best


def _take(choices, name):
    for choice in choices:
        choice.take(name)
