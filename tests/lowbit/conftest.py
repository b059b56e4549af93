import numpy as np
import pytest

from tfquant.lowbit import doctor
from tfquant.lowbit.core import Core


@pytest.fixture
def rng():
    return np.random.default_rng(20240)


@pytest.fixture(scope="session")
def core():
    if not doctor().built:
        pytest.skip(f"needs the compiled ops: {doctor().problem}")
    return Core()
