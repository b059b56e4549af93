"""What LiteRT's tables are made of."""

import ctypes
import ctypes.util
import platform

import numpy as np
import pytest
from fuzz import differing

from tfquant.devices import DEVICES
from tfquant.kernels import tables

OF_LITERT = {name: d for name, d in DEVICES.items() if d.runtime == "litert"}
HERE = [device for device in OF_LITERT.values() if device.runs_here()]


def c_library(name):
    """A function of one float32 of the C library that LiteRT calls."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc, whose functions LiteRT calls")
    function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    return lambda x: np.array([function(float(value)) for value in x], np.float32)


def test_exp_is_that_of_the_c_library_and_not_the_nearest_number(rng):
    # Smaller ones have no normal exponential.
    uniform, small = rng.uniform(-87, 88.7, 150_000), -(2.0 ** rng.uniform(-30, 6, 50_000))
    x = np.concatenate([uniform, small, [0.0, -0.0, -1000.0, 1000.0]]).astype(np.float32)
    expected = c_library("expf")(x)
    np.testing.assert_array_equal(tables.exp(x), expected)
    nearest = np.exp(x[:-1].astype(np.float64)).astype(np.float32)
    assert (nearest != expected[:-1]).sum() > 50


@pytest.mark.parametrize(
    "device", [d for d in OF_LITERT.values() if d.runs_here()], ids=lambda d: d.name
)
def test_a_gelu_of_16_bits_is_apart_by_the_c_librarys_erfc_alone(device, monkeypatch):
    erfc, root = c_library("erfcf"), -np.sqrt(np.float32(0.5))

    def gelu(x):
        x = np.asarray(x, np.float32)
        return np.float32(0.5) * x * erfc(x * root)

    places = np.linspace(-4, 4, 10_000, dtype=np.float32)
    assert (gelu(places) != np.asarray(tables.FUNCTIONS["GELU"](places))).any()
    monkeypatch.setitem(tables.FUNCTIONS, "GELU", gelu)
    assert [differing(device, "GELU", 16, seed)[0] for seed in range(100)] == [0] * 100
