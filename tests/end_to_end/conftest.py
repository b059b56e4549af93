"""With `--arm64 ROOT` every file of the suite is run on an emulated phone."""

import types

import pytest

from tfquant.devices import device
from tfquant.tflite import convert


@pytest.fixture(autouse=True)
def processor(request, monkeypatch):
    """Makes the processor at hand the emulated one, where that is asked for."""
    if request.config.getoption("--arm64"):
        phone = request.getfixturevalue("phone")
        named = types.SimpleNamespace(machine=lambda: "aarch64")
        monkeypatch.setattr(device, "platform", named)
        monkeypatch.setattr(convert, "run_here", phone.run)
