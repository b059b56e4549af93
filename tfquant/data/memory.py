"""Memory that arrays left behind."""

import ctypes
import os


def give_back() -> None:
    """Gives freed memory back to the system, where the C library keeps it: glibc.

    It keeps what arrays of up to 32 MiB leave, in pieces that larger ones do not fit in. After a
    pass over images that is several times the weights.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class Sweep:
    """Gives memory back again and again, in the middle of a pass.

    Args:
        values: After so many values were computed.
    """

    def __init__(self, values: int = 2**24):
        self._values, self._seen = values, 0

    def note(self, count: int) -> None:
        """Notes that `count` values were computed."""
        self._seen += count
        if self._seen >= self._values:
            self._seen = 0
            give_back()
