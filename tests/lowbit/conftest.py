import numpy as np
import pytest

from tfquant.lowbit import build, doctor
from tfquant.lowbit.core import Core

# As sources.bzl lists them, whatever this processor can run.
LISTS = build.source_lists()
PATHS = ["portable", *LISTS["X86_64_PATHS"], *LISTS["AARCH64_PATHS"]]


@pytest.fixture
def listed_paths():
    return tuple(PATHS)


@pytest.fixture(params=PATHS)
def path(request, core):
    if request.param not in core.paths():
        pytest.skip(f"this processor cannot run the path {request.param}")
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20240)


@pytest.fixture(scope="session")
def core():
    if not doctor().built:
        pytest.skip(f"needs the compiled ops: {doctor().problem}")
    return Core()
