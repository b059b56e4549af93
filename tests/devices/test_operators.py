"""The arithmetic of each device against LiteRT, one operator at a time, on random calls."""

import os

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from one_operator import File, Tensor
from operator_cases import CASES, clipped, grid_on

from tfquant.devices import DEVICES

# Cases of each operator in the long set, `pytest -m long`.
MANY = int(os.environ.get("TFQUANT_OPERATOR_CASES", "20000"))

HERE = [device for device in DEVICES.values() if device.runs_here()]

ROWS = [
    pytest.param(device, name, bits, id=f"{device.name}-{name}-{bits}")
    for device in HERE
    for name, (widths, _) in CASES.items()
    for bits in widths
    if not device.why_not(name.split()[0], bits)
]

# Made with the C library's `erfc` in float32, of which this knows the rounded values: a product may
# fall on the other side of a half.
OFF_BY_ONE = {("GELU", 16): 2e-3}


def differing(device, name, bits, seed):
    """Returns how many values of a random call differ, their number and the largest difference."""
    file, expected = CASES[name][1](device, np.random.default_rng(seed), bits)
    apart = np.abs(file.run(device.resolver).reshape(expected.shape) - expected)
    return int((apart > 0).sum()), apart.size, int(apart.max(initial=0))


@pytest.mark.parametrize(("device", "name", "bits"), ROWS)
def test_an_operator_computes_what_litert_does(device, name, bits):
    exact = device.arithmetic(name.split()[0], bits) == "exact"
    assert exact == ((name, bits) not in OFF_BY_ONE)

    @hypothesis.given(strategies.integers(0, 2**32))
    @hypothesis.settings(max_examples=5, deadline=None, database=None)
    def compare(seed):
        apart, _, largest = differing(device, name, bits, seed)
        assert apart == 0 if exact else largest <= 1

    compare()


@pytest.mark.long
@pytest.mark.parametrize(("device", "name", "bits"), ROWS)
def test_an_operator_computes_what_litert_does_in_many_cases(device, name, bits):
    found = np.array([differing(device, name, bits, seed) for seed in range(MANY)])
    share = found[:, 0].sum() / found[:, 1].sum()
    assert share <= OFF_BY_ONE.get((name, bits), 0.0), found[:, 2].max()


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_every_operator_with_arithmetic_has_a_case(device):
    # Pooling is compared by tests/registry/test_device_arithmetic.py.
    tested = {(name.split()[0], bits) for name, (widths, _) in CASES.items() for bits in widths}
    known = {(name, bits) for name, row in device.operators.items() for bits in row.steps}
    untested = {("AVERAGE_POOL_2D", 8), ("AVERAGE_POOL_2D", 16), ("LOG", 8)}
    assert known - tested == untested & known


@pytest.mark.parametrize(
    ("name", "power"), [("LOGISTIC", -12), ("LOGISTIC", -11), ("TANH", -12), ("TANH", -11)]
)
@pytest.mark.parametrize("device", HERE, ids=lambda device: device.name)
def test_steps_at_which_a_kernel_takes_series_are_named(device, name, power):
    q = np.arange(-32768, 32768).reshape(1, 256, 256)
    for scale in (2.0**power, 2.0**power * 1.01):
        output = grid_on(16, 2.0**-15, 0)
        steps = device.compute(name, [grid_on(16, scale, 0)._replace(steps=np.float32(q))], output)
        tensors = Tensor(q.shape, "int16", scale), Tensor(q.shape, "int16", 2.0**-15)
        file = File(name, tensors[:1], tensors[1], (q,))
        apart = np.abs(file.run(device.resolver) - clipped(steps, output)).max()
        exact = device.arithmetic(name, 16, scale) == "exact"
        assert (apart == 0) == exact, (scale, apart)
        assert apart <= 12  # What the words of `tables.tanh_16` say.
