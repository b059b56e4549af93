"""`Notebook`: figures by name, kept in a file as they come."""

import hashlib
import json
import os

import keras
import numpy as np
from keras import ops

from tfquant.about import __version__


class Notebook:
    """Figures by name, kept in a file as they come: what was killed goes on where it was.

    A line a figure, written through to the disk before the next is begun. Lines of another key,
    such as those of another model, and one that was cut short are passed over.

    Args:
        path: File, which need not be there; `None` to keep them in memory.
        key: What the figures hang on; see `content_key`.
    """

    def __init__(self, path, key: str):
        self._path, self._key, self._found = path, key, {}
        if path is not None:
            self._read()

    def _read(self):
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                lines = file.read().split("\n")
        except FileNotFoundError:
            return
        strange = 0
        for line in filter(None, lines):
            try:
                record = json.loads(line)
                key, name, value = record["key"], record["name"], record["value"]
            except (KeyError, TypeError, ValueError):
                strange += 1
                continue
            if key == self._key:
                self._found[name] = value
        if strange > 1:  # One is what a process that was killed may leave.
            raise ValueError(
                "`cache` must name a file that tfquant wrote, or one that is not there. Received: "
                f"'{self._path}', of which {strange} lines are no figures."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def get(self, name: str, compute):
        """Returns a figure: what was noted, or what `compute` returns, which is then noted."""
        if name not in self._found:
            value = compute()
            self._found[name] = value
            if self._path is not None:
                line = json.dumps({"key": self._key, "name": name, "value": value})
                with open(self._path, "a+b") as file:
                    if file.tell():  # Behind a line that was cut short begins a new one.
                        file.seek(-1, os.SEEK_END)
                        line = line if file.read(1) == b"\n" else f"\n{line}"
                    file.write(f"{line}\n".encode())
                    file.flush()
                    os.fsync(file.fileno())
        return self._found[name]


def content_key(model, *parts) -> str:
    """Returns a hash of a model, its weights, and of arrays and plain values.

    Args:
        model: Keras model.
        *parts: Arrays, lists of arrays, and what `repr` tells apart.
    """
    found = hashlib.sha256(f"{__version__} {keras.version()} {model.to_json()}".encode())
    for variable in model.weights:
        _add(found, ops.convert_to_numpy(variable))
    for part in parts:
        arrays = part if isinstance(part, list) else [part]
        if all(isinstance(x, np.ndarray) for x in arrays):
            for x in arrays:
                _add(found, x)
        else:
            found.update(repr(part).encode())
    return found.hexdigest()


def _add(found, x):
    x = x.astype(str) if x.dtype == object else x
    found.update(f"{x.dtype} {x.shape}".encode())
    found.update(np.ascontiguousarray(x).tobytes())
