"""What the runs of a `call` take for the dimensions that are free."""

import dataclasses
import itertools

import keras

# Batch sizes of the two runs, and the longest sequence that is read where the length is free.
BATCHES = (2, 3)
LONGEST = 512

# Ways to say which free lengths are the same that are tried.
MOST_TRIED = 16


@dataclasses.dataclass(frozen=True)
class Size:
    """What a run takes for the free dimensions; `None` leaves them free.

    Attributes:
        batch: Number of rows.
        lengths: The lengths, one for each number in `numbers`.
        numbers: Dict from a tensor and an axis of it to the number of its length.
    """

    batch: int | None = None
    lengths: tuple = ()
    numbers: dict = dataclasses.field(default_factory=dict)

    def shape(self, x):
        """Returns the shape of a tensor with these dimensions."""
        if not x.shape:
            return x.shape
        batch = self.batch if x.shape[0] is None else x.shape[0]
        length = lambda axis: self.lengths[self.numbers[x, axis]] if self.lengths else None  # noqa: E731
        sizes = enumerate(x.shape[1:], 1)
        return (batch, *(length(axis) if n is None else n for axis, n in sizes))


def in_two_runs(given, attempt):
    """Returns what `attempt` does with two sizes, of which the second is as long as it can be."""
    if not any(None in x.shape[1:] for x in given):
        return attempt(*map(Size, BATCHES))
    first = None
    for numbers in itertools.islice(_equal_lengths(given), MOST_TRIED):
        try:
            return _longest(numbers, attempt)
        except Exception as error:
            first = first or error
    raise first or ValueError("Several lengths are free.")


def _equal_lengths(given):
    """Yields ways to say which free lengths of tensors are the same, the most different first.

    Those of masks are lengths of the sequences beside them.

    Args:
        given: KerasTensors.

    Yields:
        Dict from a tensor and an axis of it to the number of its length.
    """
    free = [(x, axis) for x in given for axis, n in enumerate(x.shape) if axis and n is None]
    own = [(x, axis) for x, axis in free if len(x.shape) > 2 and x.shape[-1] is not None]
    masks = [place for place in free if place not in own]
    if not own:
        flat = [place for place in masks if place[1] == 1]
        of_reals = [x for x, axis in masks if axis > 1 and keras.backend.is_float_dtype(x.dtype)]
        if flat and not of_reals:  # Else an axis is no length, or no tensor has it in front.
            yield dict.fromkeys(free, 0)
        return
    for numbers in sorted(_numberings(len(own)), key=max, reverse=True):
        same = dict(zip(own, numbers, strict=True))
        if len({(x, n) for (x, _), n in same.items()}) < len(own):
            continue  # Height and width of an image.
        for others in itertools.product(range(max(numbers) + 1), repeat=len(masks)):
            yield {**same, **dict(zip(masks, others, strict=True))}


def _numberings(count, used=0):
    """Yields the ways to number `count` things, a new number being the next."""
    if not count:
        yield ()
        return
    for number in range(used + 1):
        for rest in _numberings(count - 1, max(used, number + 1)):
            yield (number, *rest)


def _longest(numbers, attempt):
    """Returns what `attempt` does with the longest sequences that it works with."""
    count, found = max(numbers.values()) + 1, {}
    least = 2 if count == 1 else count + 2  # What is of length 1 would fit any other.

    def works(length):
        # The pair of a length tells it from others.
        pairs = [(length - 1 - number, length) for number in range(count)]
        sizes = zip(BATCHES, zip(*pairs, strict=True), strict=True)
        try:
            found[length] = attempt(*(Size(*size, numbers) for size in sizes))
        except Exception as error:
            if length <= least:
                raise error
        return length in found

    length = LONGEST
    while not works(length):
        length = max(length // 2, least)
    too_long = min(2 * length, LONGEST + 1)
    while too_long - length > 1:
        middle = (length + too_long) // 2
        length, too_long = (middle, too_long) if works(middle) else (length, middle)
    return found[length]
