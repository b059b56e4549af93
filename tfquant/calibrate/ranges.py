"""Ranges whose rare values are kept or clipped by what that does to the model's outputs."""

import numpy as np

from tfquant.calibrate.judge import Judge

# Activations that are computed for each comparison, and rows: at least so many, of large models.
JUDGED_VALUES = 6e7
LEAST_ROWS, MOST_ROWS = 8, 256

# Activations that may be computed to choose tensor by tensor, and how many comparisons at most.
SINGLE_VALUES = 2e7
MOST_SINGLE = 8

# Nothing is compared unless one range is wider than another by this factor: the tails of bell
# curves are not.
RARE = 1.5

# A range takes another's place only if outputs gain more than chance would give, in dB.
LEAST_GAIN = 0.25


def choose_ranges(model, watch, arrays, values_per_row: int, calls) -> None:
    """Chooses between ranges where rare values would make one much wider.

    No statistic of a tensor says whether its rare values matter. First one kind of range is taken
    for all such tensors, the one with the best outputs; then, where the model is small, one tensor
    after the other may take another, those with the most different ranges first.

    Args:
        model: Model whose grids are set.
        watch: `Watch` that set them.
        arrays: Inputs, a list, of all rows that may be used.
        values_per_row: Activations that the model computes for a row.
        calls: `RealCalls` of the model.
    """
    choices = watch.choices()
    count = len(arrays[0])
    if not choices or (model.inputs[0].shape[0] is not None and count % model.inputs[0].shape[0]):
        return
    rows = int(np.clip(JUDGED_VALUES / max(values_per_row, 1), LEAST_ROWS, MOST_ROWS))
    batch = model.inputs[0].shape[0] or 32
    if model.inputs[0].shape[0] is None:
        places = np.unique(np.linspace(0, count - 1, min(count, rows)).astype(int))
    else:
        places = np.arange(min(count, max(rows // batch, 1) * batch))
    judge = Judge(model, [array[places] for array in arrays], batch, calls)
    best = _together(choices, judge)
    single = int(SINGLE_VALUES / max(len(places) * values_per_row, 1))
    if len(choices) > 1:
        _one_by_one(choices, judge, best, min(single, MOST_SINGLE))


def _together(choices, judge) -> float:
    """Takes the kind of range that serves outputs best; returns their ratio in dB."""
    best, ratio = choices[0].taken, judge.sqnr()
    for name in ("min_max", "mean_squared_error"):
        _take(choices, name)
        found = judge.sqnr()
        if found > ratio + LEAST_GAIN:
            best, ratio = name, found
        elif name == "min_max":
            break  # Nothing is made of the rare values: no need to weigh them.
    _take(choices, best)
    return ratio


def _one_by_one(choices, judge, best, comparisons):
    tried = [(choice, name) for choice in choices for name in choice.names]
    for choice, name in tried[:comparisons]:
        before = choice.taken
        if name == before:
            continue
        choice.take(name)
        ratio = judge.sqnr()
        if ratio > best + LEAST_GAIN:
            best = ratio
        else:
            choice.take(before)


def _take(choices, name):
    for choice in choices:
        choice.take(name)
