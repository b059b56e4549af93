import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tfquant import lowbit
from tfquant.numerics import packing, reference

PATHS = ["portable", "avx2", "avxvnni", "avx512", "neon"]
GROUPS = {
    "tensor": (10**6, 10**6),
    "row": (1, 10**6),
    "column": (10**6, 1),
    "group along columns": (1, 32),
    "group along rows": (4, 1),
    "odd group": (2, 7),
}


def case(rng, num_bits, columns, groups, rows=9):
    row_group, column_group = GROUPS[groups]
    row_group, column_group = min(row_group, rows), min(column_group, columns)
    shape = (-(-rows // row_group), -(-columns // column_group))
    scale = rng.uniform(0.01, 3, shape).astype(np.float32)
    zero_point = rng.integers(0, 2**num_bits, shape).astype(np.float32)
    packed = packing.pack(rng.integers(0, 2**num_bits, (rows, columns)), num_bits)
    form = {"num_bits": num_bits, "row_group": row_group, "column_group": column_group}
    return packed, scale, zero_point, form


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_bits", [8, 4, 2, 1])
@pytest.mark.parametrize("groups", GROUPS)
def test_every_path_dequantizes_exactly(core, rng, path, num_bits, groups):
    if path not in core.paths():
        pytest.skip(f"this processor cannot run the path {path}")
    for columns in (1, 7, 15, 16, 17, 31, 33, 64, 129, 300):
        packed, scale, zero_point, form = case(rng, num_bits, columns, groups)
        form["columns"] = columns
        book = rng.normal(size=2**num_bits).astype(np.float32)
        for extra in ({}, {"zero_point": zero_point}, {"codebook": book}):
            expected = reference.dequantize(packed, scale, **form, **extra)
            found = core.dequantize(packed, scale, path=path, threads=2, **form, **extra)
            np.testing.assert_array_equal(found, expected)
        brain = core.dequantize(packed, scale, path=path, dtype="bfloat16", **form)
        expected = reference.dequantize(packed, scale, **form).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(brain, expected.view(np.uint16))


@pytest.mark.parametrize("num_bits", [8, 4, 2, 1])
@pytest.mark.parametrize("groups", GROUPS)
def test_the_ops_are_the_reference(core, rng, num_bits, groups):
    packed, scale, zero_point, form = case(rng, num_bits, 37, groups)
    expected = reference.dequantize(packed, scale, columns=37, zero_point=zero_point, **form)
    found = lowbit.dequantize(packed, scale, columns=37, zero_point=zero_point, **form)
    np.testing.assert_array_equal(found, expected)
    x = rng.normal(size=(9, 37)).astype(np.float32) * 3
    x[0, :3] = np.inf, -np.inf, np.nan
    for zero in (None, zero_point):
        np.testing.assert_array_equal(
            lowbit.quantize_pack(x, scale, zero_point=zero, **form),
            reference.quantize(x, scale, zero_point=zero, **form),
        )


def test_dequantize_can_give_bfloat16(core, rng):
    packed, scale, _, form = case(rng, 4, 40, "row")
    assert (
        lowbit.dequantize(packed, scale, columns=40, dtype="bfloat16", **form).dtype == "bfloat16"
    )


def test_empty_arrays_are_empty(core):
    packed, scale = np.zeros((0, 4), np.uint8), np.zeros((0, 1), np.float32)
    assert lowbit.dequantize(packed, scale, num_bits=4, columns=8, column_group=8).shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_bits": 5}, "`num_bits` must be 8, 4, 2 or 1"),
        ({"row_group": 0}, "Group sizes must be at least 1"),
        ({"scale": np.ones((9, 2), np.float32)}, "`scale` must hold 9 values"),
        ({"scale": np.full((9, 1), np.inf, np.float32)}, "`scale` must be positive and finite"),
        ({"scale": np.zeros((9, 1), np.float32)}, "`scale` must be positive and finite"),
        ({"zero_point": np.full((9, 1), 16.0)}, r"`zero_point` must lie in \[0, 15\]"),
        ({"zero_point": np.full((9, 2), 1.0)}, "`zero_point` must be empty or have the shape"),
        ({"codebook": np.zeros(15)}, "`codebook` must be empty or hold 2.num_bits=16 values"),
        ({"columns": 39}, None),
        ({"columns": 42}, None),
    ],
)
def test_wrong_arguments_are_refused(core, rng, change, words):
    packed, scale, _, form = case(rng, 4, 40, "row")
    given = {"scale": scale, "columns": 40} | form | change
    if change.get("columns") == 39:
        assert lowbit.dequantize(packed, **given).shape == (9, 39)  # fits the same bytes
        return
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=words):
        lowbit.dequantize(packed, **given)
