"""The arithmetic of each device against what runs its files, one operator at a time."""

import os

import hypothesis
import numpy as np
import pytest
from fuzz import OF_FILES, differing, piece, rows
from hypothesis import strategies
from one_operator import File, Tensor
from operator_cases import CASES, at_ratio, clipped, grid_on

from tfquant.devices import DEVICES
from tfquant.devices.device import EXACT, UNUSUAL_STEPS
from tfquant.litert import micro

# Cases of each operator in the long set, `pytest -m long`; `fuzz.py` runs them in pieces.
MANY = int(os.environ.get("TFQUANT_OPERATOR_CASES", "20000"))

ROWS = [
    pytest.param(*row, id=f"{row[0].name}-{row[1]}-{row[2]}") for row in rows(OF_FILES.values())
]

# Made with the C library's `erfc` in float32, of which this knows the rounded values: a product may
# fall on the other side of a half.
OFF_BY_ONE = {("GELU", 16): 2e-3}


@pytest.fixture
def run(device, request):
    """What runs a file on the device, `None` for this machine; an emulated phone for phones."""
    if device.runtime == "tflm":
        pytest.importorskip("tflite_micro", reason="needs the extra tfquant[tflm]: tflite-micro")
        return micro.run
    return None if device.runs_here() else request.getfixturevalue("phone").run


@pytest.mark.parametrize(("device", "name", "bits"), ROWS)
def test_an_operator_computes_what_runs_it_does(device, name, bits, run):
    exact = device.arithmetic(name.split()[0], bits) == "exact"
    assert exact == ((name.split()[0], bits) not in OFF_BY_ONE)

    @hypothesis.given(strategies.integers(0, 2**32))
    @hypothesis.settings(max_examples=5, deadline=None, database=None)
    def compare(seed):
        apart, _, largest = differing(device, name, bits, seed, run)
        assert apart == 0 if exact else largest <= 1

    compare()


@pytest.mark.long
@pytest.mark.parametrize(("device", "name", "bits"), ROWS)
def test_an_operator_computes_what_runs_it_does_in_many_cases(device, name, bits, run):
    found = piece(device, name, bits, range(MANY), run)
    share = found["apart"] / found["values"]
    assert share <= OFF_BY_ONE.get((name.split()[0], bits), 0.0), found


@pytest.mark.parametrize("device", OF_FILES.values(), ids=lambda device: device.name)
def test_every_operator_with_arithmetic_has_a_case(device):
    # Pooling is compared by tests/configs/test_device_arithmetic.py.
    tested = {(name.split()[0], bits) for name, (widths, _) in CASES.items() for bits in widths}
    known = {(name, bits) for name, row in device.operators.items() for bits in row.steps}
    untested = {("AVERAGE_POOL_2D", 8), ("AVERAGE_POOL_2D", 16), ("LOG", 8)}
    assert known - tested == untested & known


@pytest.mark.parametrize("off", [0.0, 9.9e-4, -9.9e-4, 1.01e-3, -1.01e-3])
@pytest.mark.parametrize(
    ("name", "power"), [(name, power) for name in ("LOGISTIC", "TANH") for power in range(-13, -9)]
)
@pytest.mark.parametrize("device", OF_FILES.values(), ids=lambda device: device.name)
def test_a_sigmoid_of_16_bits_is_right_at_every_integer_where_series_begin(
    device, name, power, off, run
):
    q, scale = (
        np.arange(-32768, 32768).reshape(1, 256, 256),
        float(np.float32(2.0 ** (power + off))),
    )
    output = grid_on(16, 2.0**-15, 0)
    steps = device.compute(name, [grid_on(16, scale, 0)._replace(steps=np.float32(q))], output)
    tensors = Tensor(q.shape, "int16", scale), Tensor(q.shape, "int16", 2.0**-15)
    file = File(name, tensors[:1], tensors[1], (q,))
    np.testing.assert_array_equal(file.run(device.resolver, run), clipped(steps, output))


# On both sides of what XNNPACK takes: 2**-10 to below 2**8 of sums, 2**-8 to 2**7 of one tensor.
POWERS = (-12.0, -10.03, -10.0, -9.97, -8.5, -8.1, -8.0, -7.9, -7.5, 6.9, 7.0, 7.1, 7.54, 7.8)
POWERS += (7.99, 8.0, 8.01, 9.5, 12.0)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("operator", ["ADD", "LEAKY_RELU", "MUL", "QUANTIZE", "SUB"])
@pytest.mark.parametrize("device", OF_FILES.values(), ids=lambda device: device.name)
def test_steps_that_xnnpack_refuses_are_computed_as_litert_does(device, operator, power, run):
    for seed in range(4):
        file, expected = at_ratio(operator, power)(device, np.random.default_rng(seed), 8)
        scales = [tensor.scale for tensor in file.inputs]
        if device.arithmetic(operator, 8, scales, file.output.scale) == EXACT:
            np.testing.assert_array_equal(file.run(device.resolver, run), expected)


@pytest.mark.parametrize(
    ("operator", "scales", "scale", "label"),
    [
        ("ADD", (2.0**-12, 1.0), 1.0, EXACT),
        ("ADD", (1.0, 255.9), 1.0, EXACT),
        ("ADD", (1.0, 256.0), 1.0, UNUSUAL_STEPS),
        ("MUL", (16.0, 15.9), 1.0, EXACT),
        ("MUL", (16.0, 16.0), 1.0, UNUSUAL_STEPS),
        ("SUB", (1.0, 255.9), 1.0, EXACT),
        ("SUB", (1.0, 256.0), 1.0, UNUSUAL_STEPS),
        ("QUANTIZE", (1.0,), 256.0, EXACT),
        ("QUANTIZE", (1.0,), 257.0, UNUSUAL_STEPS),
        ("QUANTIZE", (128.0,), 1.0, EXACT),
        ("QUANTIZE", (129.0,), 1.0, UNUSUAL_STEPS),
    ],
)
def test_no_operator_is_called_exact_at_steps_that_are_not_modelled(operator, scales, scale, label):
    assert DEVICES["litert"].arithmetic(operator, 8, scales, scale) == label
    assert DEVICES["litert_reference"].arithmetic(operator, 8, scales, scale) == EXACT
    assert DEVICES["litert"].arithmetic(operator, 8) == EXACT


@pytest.mark.parametrize("operator", ["ADD", "MUL"])
def test_a_step_256_times_that_of_a_sum_or_product_is_computed_otherwise(operator):
    device, case = DEVICES["litert"], at_ratio(operator, 9.5)
    cases = [case(device, np.random.default_rng(seed), 8) for seed in range(6)]
    assert any(np.any(file.run(device.resolver) != expected) for file, expected in cases)


def test_what_is_left_over_by_sixteen_rounds_otherwise_where_a_step_grows_more_than_256_fold():
    q = np.full((1, 17), -128, "int8")  # 160 steps below the zero point: minus one half.
    tensors = Tensor(q.shape, "int8", 1.0, 32), Tensor(q.shape, "int8", 320.0)
    found = File("QUANTIZE", tensors[:1], tensors[1], (q,), "Quantize").run()
    np.testing.assert_array_equal(found[0], [0] * 16 + [-1])


@pytest.mark.parametrize(
    ("power", "off", "expected"), [(-12, 9e-4, True), (-12, 2e-3, False), (-10, 0.0, False)]
)
def test_series_differ_from_the_reference_kernels_where_they_are_taken(power, off, expected):
    litert, reference = DEVICES["litert"], DEVICES["litert_reference"]
    assert litert.differs(reference, "TANH", 16, 2.0 ** (power + off)) == expected
    assert not litert.differs(reference, "TANH", 16)
