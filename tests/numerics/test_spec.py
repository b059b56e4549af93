import json

import numpy as np
import pytest

from tfquant import PerAxis, PerGroup, PerTensor, QuantSpec

GRANULARITIES = (PerTensor(), PerAxis(), PerAxis(0), PerAxis((-2, -1)), PerGroup(0, 32))


@pytest.mark.parametrize("num_bits", range(1, 17))
def test_a_grid_of_n_bits_has_two_to_the_n_integers(num_bits):
    for signed in (True, False):
        spec = QuantSpec(num_bits, signed=signed)
        assert len(range(spec.qmin, spec.qmax + 1)) == 2**num_bits
        assert QuantSpec(num_bits, signed=signed, narrow_range=True).qmin == spec.qmin + 1


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_a_grid_has_the_bounds_of_the_integer_type(dtype):
    info = np.iinfo(dtype)
    spec = QuantSpec(info.bits, signed=info.kind == "i")
    assert (spec.qmin, spec.qmax) == (info.min, info.max)


@pytest.mark.parametrize("num_bits", [2, 4, 8, 16])
def test_a_signed_narrow_range_is_symmetric_about_zero(num_bits):
    spec = QuantSpec(num_bits, narrow_range=True)
    assert spec.qmin == -spec.qmax


@pytest.mark.parametrize("num_bits", [-1, 0, 17, 32])
def test_a_width_outside_1_to_16_is_an_error(num_bits):
    with pytest.raises(ValueError, match=f"between 1 and 16.*num_bits={num_bits}"):
        QuantSpec(num_bits)


@pytest.mark.parametrize("group_size", [0, -4])
def test_a_group_without_values_is_an_error(group_size):
    with pytest.raises(ValueError, match=f"at least 1.*group_size={group_size}"):
        PerGroup(0, group_size)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
def test_a_specification_survives_json(granularity):
    spec = QuantSpec(5, signed=False, symmetric=True, narrow_range=True, granularity=granularity)
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_one_axis_is_a_tuple_of_one():
    assert PerAxis(3).axes == (3,)
    assert PerAxis((2, 3)).axes == (2, 3)


def test_equal_specifications_are_interchangeable():
    assert len({QuantSpec(8), QuantSpec(8), QuantSpec(8, signed=False)}) == 2
