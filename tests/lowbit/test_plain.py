"""Plain packed rows: every path, the ops, and what they refuse."""

import ctypes

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tfquant import lowbit
from tfquant.lowbit import library
from tfquant.lowbit.core import aligned
from tfquant.numerics import packing, reference

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


@pytest.mark.parametrize(("rows", "columns"), [(0, 8), (3, 0), (0, 0)])
def test_empty_arrays_are_empty(core, rows, columns):
    packed = np.zeros((rows, columns // 2), np.uint8)
    scale = np.zeros((rows, columns // 8), np.float32)
    form = {"num_bits": 4, "column_group": 8}
    assert lowbit.dequantize(packed, scale, columns=columns, **form).shape == (rows, columns)
    real = np.zeros((rows, columns), np.float32)
    assert lowbit.quantize_pack(real, scale, **form).shape == packed.shape


@hypothesis.settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    num_bits=st.sampled_from([8, 4, 2, 1]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 200),
    row_group=st.integers(1, 12),
    column_group=st.integers(1, 250),
    seed=st.integers(0, 2**31),
)
def test_any_shape_goes_there_and_back(
    core, num_bits, rows, columns, row_group, column_group, seed
):
    rng = np.random.default_rng(seed)
    v = rng.integers(0, 2**num_bits, (rows, columns))
    shape = (-(-rows // row_group), -(-columns // column_group))
    scale = rng.uniform(0.1, 3, shape).astype(np.float32)
    zero_point = rng.integers(0, 2**num_bits, shape).astype(np.float32)
    form = {"num_bits": num_bits, "row_group": row_group, "column_group": column_group}
    packed = packing.pack(v, num_bits)
    real = lowbit.dequantize(packed, scale, columns=columns, zero_point=zero_point, **form)
    spread = [
        np.repeat(np.repeat(a, row_group, axis=0)[:rows], column_group, axis=1)[:, :columns]
        for a in (scale, zero_point)
    ]
    np.testing.assert_array_equal(real, spread[0] * (v.astype(np.float32) - spread[1]))
    again = lowbit.quantize_pack(real, scale, zero_point=zero_point, **form)
    np.testing.assert_array_equal(again, packed)


@pytest.mark.parametrize("num_bits", [8, 4, 2, 1])
def test_large_arrays_and_odd_places_dequantize_exactly(core, rng, path, num_bits):
    """From 4 MB on stores go past the caches where a row's place allows, which odd rows shift."""
    if path not in core.paths():
        pytest.skip(f"this processor cannot run the path {path}")
    rows, columns = 1030, 1028
    packed = packing.pack(rng.integers(0, 2**num_bits, (rows, columns)), num_bits)
    moved = aligned(packed.size, np.uint8, 3).reshape(packed.shape)
    moved[:] = packed
    scale = rng.uniform(0.1, 3, (rows, 1)).astype(np.float32)
    form = {"num_bits": num_bits, "columns": columns}
    expected = reference.dequantize(packed, scale, column_group=columns, **form)
    for offset in (0, 4, 12):
        out = aligned(rows * columns, np.float32, offset).reshape(rows, columns)
        core.dequantize(moved, scale, column_group=columns, path=path, threads=2, out=out, **form)
        np.testing.assert_array_equal(out, expected)
    columns_scale = rng.uniform(0.1, 3, (1, columns)).astype(np.float32)
    out = aligned(rows * columns, np.float32, 0).reshape(rows, columns)
    core.dequantize(moved, columns_scale, row_group=rows, path=path, out=out, **form)
    expected = reference.dequantize(packed, columns_scale, row_group=rows, **form)
    np.testing.assert_array_equal(out, expected)


def test_wrong_types_are_refused(core, rng):
    packed, scale, _, form = case(rng, 4, 40, "row")
    ops = library.ops()
    zero = tf.zeros((0,))
    for first, second in ((packed.astype(np.int8), scale), (packed, scale.astype(np.float64))):
        with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)):
            ops.tfquant_dequantize(
                tf.constant(first), tf.constant(second), zero, zero, columns=40, **form
            )
    with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)):
        lowbit.dequantize(packed, scale, columns=40, dtype="float64", **form)


@pytest.mark.parametrize("which", ["packed", "scale", "out"])
def test_null_arrays_are_refused(core, which):
    pointers = {"packed": np.zeros(2, np.uint8), "scale": np.ones(1, np.float32)}
    pointers["out"] = np.zeros(4, np.float32)
    at = {k: None if k == which else ctypes.c_void_p(v.ctypes.data) for k, v in pointers.items()}
    i64, c = ctypes.c_int64, library.c_library()
    name = {"out": "real"}.get(which, which)
    sizes = (4, i64(1), i64(4), i64(1), i64(4))
    code = c.tfquant_dequantize(
        None, 1, *sizes, at["packed"], i64(2), at["scale"], i64(1), None, None, 0, at["out"]
    )
    assert code == -1 and c.tfquant_error().decode() == f"`{name}` must not be null."
    code = c.tfquant_quantize(1, *sizes, at["out"], at["scale"], i64(1), None, at["packed"], i64(2))
    assert code == -1 and c.tfquant_error().decode() == f"`{name}` must not be null."


def test_an_unknown_type_is_refused(core):
    i64, c = ctypes.c_int64, library.c_library()
    array = np.ones(16, np.float32)
    at = ctypes.c_void_p(array.ctypes.data)
    sizes = (8, i64(1), i64(4), i64(1), i64(4))
    code = c.tfquant_dequantize(None, 1, *sizes, at, i64(4), at, i64(1), None, None, 2, at)
    assert code == -1 and "`type` must be 0 (float32) or 1" in c.tfquant_error().decode()


def refuse_alike(call, words):
    """The kernel and, where values do not matter, the shape function refuse in the same words."""
    errors = (ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(errors, match=words):
        call()
    if "finite" in words or "lie in" in words:
        return  # a shape function knows no values
    with pytest.raises(errors, match=words):
        tf.function(call).get_concrete_function()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_bits": 5}, "`num_bits` must be 8, 4, 2 or 1"),
        ({"row_group": 0}, "Group sizes must be at least 1"),
        ({"scale": np.ones((9, 2), np.float32)}, r"`scale` must have the shape \(9, 1\)"),
        ({"scale": np.ones((1, 9), np.float32)}, r"`scale` must have the shape \(9, 1\)"),
        ({"scale": np.ones(9, np.float32)}, "`scale` must have 2 dimensions"),
        ({"scale": np.zeros((0, 0), np.float32)}, r"`scale` must have the shape \(9, 1\)"),
        ({"packed": np.zeros(180, np.uint8)}, "`packed` must have 2 dimensions"),
        ({"scale": np.full((9, 1), np.inf, np.float32)}, "`scale` must be positive and finite"),
        ({"scale": np.zeros((9, 1), np.float32)}, "`scale` must be positive and finite"),
        ({"zero_point": np.full((9, 1), 16.0)}, r"`zero_point` must lie in \[0, 15\]"),
        ({"zero_point": np.full((9, 2), 1.0)}, "`zero_point` must be empty or have the shape"),
        ({"codebook": np.zeros(15)}, "`codebook` must be empty or hold 2.num_bits=16 values"),
        ({"columns": 42, "column_group": 42}, "A row of `packed` must hold 21 bytes"),
        ({"columns": 2**62}, "`rows` times `columns` must be between 0 and 2.60"),
    ],
)
def test_the_shape_function_and_the_kernel_refuse_in_the_same_words(core, rng, change, words):
    packed, scale, _, form = case(rng, 4, 40, "row")
    given = {"packed": packed, "scale": scale, "columns": 40} | form | change
    refuse_alike(lambda: lowbit.dequantize(**given), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_bits": 5}, "`num_bits` must be 8, 4, 2 or 1"),
        ({"num_bits": 2**32 + 4}, "num_bits"),
        ({"column_group": 0}, "Group sizes must be at least 1"),
        ({"scale": np.ones((1, 9), np.float32)}, r"`scale` must have the shape \(9, 1\)"),
        ({"scale": np.full((9, 1), np.nan, np.float32)}, "`scale` must be positive and finite"),
        ({"zero_point": np.full((9, 2), 1.0)}, "`zero_point` must be empty or have the shape"),
        ({"zero_point": np.full((9, 1), np.nan)}, r"`zero_point` must lie in \[0, 15\]"),
        ({"x": np.zeros(40, np.float32)}, "`real` must have 2 dimensions"),
    ],
)
def test_quantize_pack_refuses_what_is_wrong(core, rng, change, words):
    _, scale, _, form = case(rng, 4, 40, "row")
    back = {"x": np.zeros((9, 40), np.float32), "scale": scale} | form | change
    refuse_alike(lambda: lowbit.quantize_pack(**back), words)


def test_columns_that_end_in_the_same_byte_fit(core, rng):
    packed, scale, _, form = case(rng, 4, 40, "row")
    assert lowbit.dequantize(packed, scale, columns=39, **form).shape == (9, 39)
