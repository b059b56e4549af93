"""Fixtures that every test may use."""

import os
import pathlib
import sys

# Before TensorFlow is imported, or it is too late.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import pytest

TOOLS = pathlib.Path(__file__).parents[1] / "tools"
SLOW = pathlib.Path(__file__).parent / "slow.txt"

# What setup.cfg asks for.
DEFAULT = "not long"


def pytest_addoption(parser):
    """Adds the option that runs files on an emulated phone."""
    text = (
        "folder of `python tools/arm64.py setup`: runs the end-to-end suite and operators on ARM64"
    )
    parser.addoption("--arm64", metavar="ROOT", help=text)


@pytest.hookimpl(tryfirst=True)  # Before pytest leaves out what is marked.
def pytest_collection_modifyitems(config, items):
    """Marks the tests that tools/slow_tests.py found slow, and leaves them out by default.

    They run where marks are asked for, or files are named.
    """
    listed = set(SLOW.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker("slow")
    if config.args == config.getini("testpaths") and config.option.markexpr == DEFAULT:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session")
def phone(request):
    """An emulated phone, where its tools are; see tools/arm64.py."""
    root = request.config.getoption("--arm64")
    if root is None:
        pytest.skip("needs --arm64 ROOT, a folder of `python tools/arm64.py setup ROOT`")
    sys.path.insert(0, str(TOOLS))
    import arm64

    try:
        emulator = arm64.Emulator(root)
    except FileNotFoundError as error:
        pytest.skip(f"--arm64: {error}")
    yield emulator
    emulator.close()


@pytest.fixture(autouse=True)
def seed():
    """Makes what Keras draws the same in each test, whichever ran before."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    """A random generator with the same seed in each test."""
    return np.random.default_rng(0)
