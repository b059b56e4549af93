"""From what a recording scope saw to the grids of activations."""

from tfquant import observers
from tfquant.numerics import choose_params
from tfquant.numerics.arrays import array_of
from tfquant.quantizers.static import Static

# The range of 16-bit values that were always zero. In steps of 1 LiteRT's addition of 16-bit
# integers aborts: its multipliers reach 2**15 between the grids of the operands.
UNSEEN = (-1.0, 1.0)


class Watch:
    """Shows each activation to an observer of its own, and sets the grids in the end.

    Quantizers of one group share an observer, and so get one range.

    Args:
        observer: As `observers.get` takes it.

    Raises:
        ValueError: If the observer is unknown.
    """

    def __init__(self, observer):
        observers.get(observer)  # An unknown name is an error before any data are read.
        self._observer = observer
        self._watched = {}

    def see(self, quantizer, x) -> None:
        """Takes in what a model computed; see `RecordingScope`."""
        if not isinstance(quantizer, Static):
            return
        key = quantizer.group or quantizer
        observer, members = self._watched.setdefault(key, (observers.get(self._observer), []))
        observer.update(observer.summarize(array_of(x)))
        if not any(quantizer is member for member in members):
            members.append(quantizer)

    def set_params(self) -> None:
        """Sets the grid of every quantizer that was seen."""
        for observer, members in self._watched.values():
            _set_params(observer, members)

    def choices(self) -> list["Choice"]:
        """Returns the tensors of which `Auto` knows several ranges, the most different first.

        Nothing more can be seen behind it: what was observed is given up, for its memory.
        """
        found = []
        for observer, members in self._watched.values():
            if isinstance(observer, observers.Auto):
                ranges, *_ = [observer.ranges(member.spec) for member in members]
                observer.forget()
                if len(ranges) > 1:
                    found.append(Choice(observer, members, ranges))
        return sorted(found, key=lambda choice: -choice.spread)


class Choice:
    """A tensor, or several that share a grid, of which there are several ranges.

    Args:
        observer: `Auto`.
        members: Quantizers.
        ranges: What the observer offers.

    Attributes:
        names: Names of the ranges.
        spread: Width of the widest as a multiple of the narrowest.
    """

    def __init__(self, observer, members, ranges):
        self._observer, self._members = observer, members
        spans = [high - low for low, high in ranges.values()]
        self.names, self.spread = tuple(ranges), max(spans) / max(min(spans), 1e-30)

    @property
    def taken(self) -> str:
        """Name of the range that is set."""
        return self._observer.choice

    def take(self, name: str) -> None:
        """Sets the grids to the range of that name."""
        self._observer.choice = name
        _set_params(self._observer, self._members)


def _set_params(observer, members):
    for quantizer in members:
        low, high = observer.range(quantizer.spec)
        if low == high == 0 and quantizer.spec.num_bits > 8:
            low, high = UNSEEN
        low, high = (quantizer.headroom * end for end in (low, high))
        quantizer.set_params(choose_params(low, high, quantizer.spec))
