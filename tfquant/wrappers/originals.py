"""`Originals`: what calibration changed in a layer, and how it takes it back."""

import hashlib

import numpy as np
from keras import ops

# Of the entries in a saved file.
PREFIX = "original_"


class Originals:
    """Values that variables of a layer had before calibration changed them.

    Calibration reads the float model, so that it has to take back first what it did the last time:
    calibrating twice is calibrating once. What training has moved since then is nobody's to take
    back, and stays.

    Args:
        owner: Layer, whose `variables` number those that are kept.
    """

    def __init__(self, owner):
        self._owner = owner
        self._kept = {}

    def __bool__(self) -> bool:
        return bool(self._kept)

    def assign(self, variable, value) -> None:
        """Gives `variable`, one of the owner's, a value, and keeps what it had at first."""
        index = next(i for i, v in enumerate(self._owner.variables) if v is variable)
        before = self._kept[index][0] if index in self._kept else ops.convert_to_numpy(variable)
        variable.assign(ops.cast(value, variable.dtype))
        self._kept[index] = before, _digest(variable)

    def restore(self) -> None:
        """Gives the variables back what they had, unless training has moved them."""
        if not self._trained():
            for index, (before, _) in self._kept.items():
                self._owner.variables[index].assign(before)
        self._kept = {}

    def snapshot(self):
        """Returns a function that puts everything back to what it is now."""
        kept = dict(self._kept)
        values = {i: ops.convert_to_numpy(self._owner.variables[i]) for i in kept}

        def undo():
            self.restore()
            for index, value in values.items():
                self._owner.variables[index].assign(value)
            self._kept = kept

        return undo

    def save(self, store) -> None:
        """Writes to `store`, a mapping from names to arrays."""
        for index, (before, after) in self._kept.items():
            store[f"{PREFIX}{index}"] = before
            store[f"{PREFIX}{index}_changed"] = np.frombuffer(after, np.uint8)

    def load(self, store) -> dict:
        """Reads what `save` wrote, and returns the entries that are somebody else's."""
        names = list(store.keys())
        self._kept = {
            int(name.removeprefix(PREFIX)): (
                np.asarray(store[name]),
                np.asarray(store[f"{name}_changed"]).tobytes(),
            )
            for name in names
            if name.startswith(PREFIX) and not name.endswith("_changed")
        }
        return {name: store[name] for name in names if not name.startswith(PREFIX)}

    def _trained(self):
        variables = self._owner.variables
        return any(_digest(variables[i]) != after for i, (_, after) in self._kept.items())


def _digest(variable) -> bytes:
    values = np.ascontiguousarray(ops.convert_to_numpy(variable))
    return hashlib.blake2b(values.tobytes(), digest_size=16).digest()
