"""The calibration rows that corrections are found on, and those that judge."""

import dataclasses

import numpy as np

# Rows that corrections are found on, and activations computed for it: fewer rows of a large model.
FIT_ROWS = 128
FIT_VALUES = 1.5e8

# One row in three is kept out of a correction, to judge it.
JUDGED = 3


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some of the calibration rows, in two parts.

    Attributes:
        arrays: Inputs of the model, a list: the rows to fit, and behind them those kept out.
        fitted: Number of rows to fit.
        batch_size: How many rows run at once: a fixed batch; `None` for any number.
    """

    arrays: list
    fitted: int
    batch_size: int | None

    def __len__(self) -> int:
        return len(self.arrays[0])

    @property
    def kept_out(self) -> int:
        """Number of rows that no correction is found on."""
        return len(self) - self.fitted

    def batches(self, start: int = 0, stop: int | None = None):
        """Yields the rows from `start` to `stop`, a list of arrays each time."""
        stop = len(self) if stop is None else stop
        size = self.batch_size or stop - start
        for first in range(start, stop, size or 1):
            yield [array[first : min(first + size, stop)] for array in self.arrays]


def split(samples, batch_size: int | None, values_per_row: int, keep_out: bool) -> Rows:
    """Takes rows from all over the samples.

    Args:
        samples: Inputs of the model, a list.
        batch_size: Number of rows that the model takes, `None` for any.
        values_per_row: Activations that the model computes for a row.
        keep_out: Whether some rows are to judge what is found on the others.

    Returns:
        `Rows`. A single row, or batch of a fixed size, is fitted, and none kept out.
    """
    room = max(1, min(FIT_ROWS, int(FIT_VALUES / max(values_per_row, 1))))
    count = len(samples[0])
    if batch_size is not None:  # Rows come by batches.
        stop = min(count, max((1 + keep_out) * batch_size, room)) // batch_size * batch_size
        return Rows([array[:stop] for array in samples], batch_size, batch_size)
    wanted = max(room + room // (JUDGED - 1), 2) if keep_out else room
    places = np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int))
    judged = (np.arange(len(places)) % JUDGED == 1) & keep_out
    order = np.r_[places[~judged], places[judged]]
    return Rows([array[order] for array in samples], int((~judged).sum()), None)
