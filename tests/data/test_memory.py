"""Memory that is freed goes back to the system."""

import ctypes
import pathlib
import resource

import numpy as np
import pytest

from tfquant.data.memory import Sweep, give_back

STATM = pathlib.Path("/proc/self/statm")
glibc = pytest.mark.skipif(
    not STATM.exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="glibc and /proc are needed",
)


def resident():
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


def leave_holes():
    """Frees 64 MiB in pieces below others that stay."""
    pieces = [np.ones(2**14, "float32") for _ in range(2048)]
    kept = pieces[1::2]
    del pieces
    return kept


@glibc
@pytest.mark.parametrize("give", [give_back, lambda: Sweep(2).note(2)])
def test_freed_pieces_leave_the_resident_set(give):
    kept = leave_holes()
    before = resident()
    give()
    assert before - resident() > 32 * 2**20
    assert all(x[0] == 1 for x in kept)


def test_a_sweep_waits_for_its_values(monkeypatch):
    given = []
    monkeypatch.setattr("tfquant.data.memory.give_back", lambda: given.append(1))
    sweep = Sweep(10)
    counts = [sweep.note(count) or len(given) for count in (9, 1, 9, 25, 0)]
    assert counts == [0, 1, 1, 2, 2]
