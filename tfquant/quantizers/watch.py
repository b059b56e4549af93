"""From what a recording scope saw to the grids of activations."""

from keras import ops

from tfquant.numerics import choose_params
from tfquant.quantizers import observers
from tfquant.quantizers.base import RecordingScope
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

    def see(self, scope: RecordingScope) -> None:
        """Takes in what a model computed inside `scope`."""
        for quantizer, x in scope.records:
            if not isinstance(quantizer, Static):
                continue
            key = quantizer.group or id(quantizer)
            observer, members = self._watched.setdefault(key, (observers.get(self._observer), []))
            observer.update(observer.unpack(ops.convert_to_numpy(observer.summarize(x))))
            if not any(quantizer is member for member in members):
                members.append(quantizer)

    def set_params(self) -> None:
        """Sets the grid of every quantizer that was seen."""
        for observer, members in self._watched.values():
            for quantizer in members:
                low, high = observer.range(quantizer.spec)
                if low == high == 0 and quantizer.spec.num_bits > 8:
                    low, high = UNSEEN
                quantizer.set_params(choose_params(low, high, quantizer.spec))
