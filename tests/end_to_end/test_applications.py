"""Networks of `keras.applications` to integer files; all of them with `pytest -m long`."""

import importlib.util
import pathlib
import sys

import keras
import pytest

import tfquant as tfq

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
SCHEMES = ("w8a8", "w4a8")
# Depthwise kernels beside 4-bit ones; residuals, gates and a swish of the device's own.
QUICK = [("MobileNet", "w4a8"), ("MobileNetV3Small", "w8a8")]


def _module(name):
    """Imports a module of `benchmarks/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


networks = _module("networks")


def _check(name, scheme, folder):
    model = networks.network(name)
    q = tfq.quantize_model(model, scheme)
    tfq.calibrate(q, networks.images(model, 10, seed=1), progress=False)
    rows = networks.images(model, 32, seed=2)
    report = tfq.to_tflite(q, folder / "model.tflite", samples=rows, progress=False)
    exact = [x for x in report.layers if x.arithmetic == "exact" and x.parity is not None]
    assert sum(x.parity.differing for x in exact if x.parity.in_steps) == 0
    # One step at a kernel that looks values up.
    assert all(x.parity.largest <= 1 for x in report.layers if x.parity and x.parity.in_steps)
    assert report.end_to_end.equal_predictions >= 0.995
    assert not report.saturated_biases
    return report


@pytest.mark.parametrize(("name", "scheme"), QUICK)
def test_a_small_network_is_integer_and_exact(name, scheme, tmp_path):
    report = _check(name, scheme, tmp_path)
    assert not report.float_operators
    assert report.end_to_end.differing == 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        (name, scheme)
        for name in networks.names()
        for scheme in SCHEMES
        if (name, scheme) not in QUICK
    ],
)
def test_every_network_is_integer_and_exact(name, scheme, tmp_path):
    report = _check(name, scheme, tmp_path)
    # Of norms, and of sums that only they read, calibration decides.
    assert all("serves the outputs in float" in x.reason for x in report.float_operators)


def test_names_are_all_of_keras_applications():
    built = {name for name in dir(keras.applications) if name[0].isupper()}
    assert set(networks.names()) == built
