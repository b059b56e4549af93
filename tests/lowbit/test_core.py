"""Every path that runs here against the reference."""

import ctypes
import functools
import os
import subprocess
import sys
import weakref

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest

from tfquant.lowbit import build, library
from tfquant.lowbit.core import Core, aligned
from tfquant.numerics import packing, reference

FORMATS = [(8, 0), (8, 64), (4, 32), (4, 64), (4, 128), (4, 0), (2, 32), (2, 128), (2, 0), (1, 0)]
ACTIVATIONS = list(reference.ACTIVATIONS)


@functools.cache
def weights(num_bits, group_size, k, n, kind="random"):
    """Integers, scales as the kernels see them, and packed bytes."""
    rng = np.random.default_rng(k * 1009 + n)
    low, high = (-1, 1) if num_bits == 1 else (-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)
    if kind == "random":
        q = rng.choice([-1, 1], (k, n)) if num_bits == 1 else rng.integers(low, high + 1, (k, n))
    else:
        q = np.full((k, n), low if kind == "lowest" else high)
    groups = -(-k // group_size) if group_size else 1
    scale = np.exp(rng.normal(size=(groups, n))) * 0.01
    packed = packing.pack_matmul(q, scale, num_bits=num_bits, group_size=group_size)
    layout = {"num_bits": num_bits, "group_size": group_size, "k": k, "n": n}
    return (*packing.unpack_matmul(packed, **layout), packed)


def check(core, path, x, num_bits, group_size, n, activations, kind="random", threads=1, **more):
    q, scale, packed = weights(num_bits, group_size, x.shape[1], n, kind)
    settings = {
        "num_bits": num_bits,
        "group_size": group_size,
        "activations": activations,
        "x_scale": 0.031,
        "zero_point": -128,
        "bias": np.random.default_rng(1).normal(size=n).astype(np.float32),
    } | more
    y = core.matmul(x, packed, units=n, path=path, threads=threads, **settings)
    expected = reference.lowbit_matmul(x, q, scale, **settings)
    error = np.abs(y - expected)
    assert (error <= reference.lowbit_matmul_bound(x, q, scale, **settings)).all()


@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_paths_agree_on_both_sides_of_every_boundary(
    core, path, num_bits, group_size, activations, rng
):
    if activations == "per_group" and not group_size:
        pytest.skip("scales per group need groups")
    edge = group_size or 32
    for k in (1, edge - 1, edge, edge + 1, 4 * edge - 1, 521, 1031):
        shapes = [(1, 1), (2, 15), (3, 16), (4, 17), (7, 33), (8, 64), (9, 65), (13, 31)]
        for m, n in [*shapes, (16, 32), (17, 15), (33, 34)]:
            check(
                core,
                path,
                rng.normal(size=(m, k)).astype("f"),
                num_bits,
                group_size,
                n,
                activations,
            )


@hypothesis.settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    form=st.sampled_from(FORMATS),
    activations=st.sampled_from(ACTIVATIONS),
    m=st.integers(1, 140),
    k=st.integers(1, 700),
    n=st.integers(1, 90),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_paths_agree_on_any_shape(core, path, form, activations, m, k, n, threads, seed):
    num_bits, group_size = form
    if activations == "per_group" and not group_size:
        activations = "per_row"
    x = np.random.default_rng(seed).normal(size=(m, k)).astype(np.float32)
    check(core, path, x, num_bits, group_size, n, activations, threads=threads)


@pytest.mark.parametrize("kind", ["lowest", "highest"])
@pytest.mark.parametrize("value", [-128, 127])
def test_extremes_never_saturate(core, path, kind, value):
    for num_bits, group_size in FORMATS:
        for m, k in ((1, 1024), (5, 32), (5, 1024), (20, 1024)):
            x = np.full((m, k), value, np.float32)
            static = {"x_scale": 1.0, "zero_point": 0}
            check(core, path, x, num_bits, group_size, 20, "static", kind, **static)
            check(core, path, x, num_bits, group_size, 20, "per_row", kind)


@pytest.mark.parametrize(("value", "zero_point"), [(-128, 0), (127, -128), (-128, 127)])
@pytest.mark.parametrize("m", [1, 9])
@pytest.mark.parametrize(("num_bits", "q"), [(8, -128), (8, 127), (4, -8), (4, 7), (2, -2), (2, 1)])
def test_the_deepest_channel_fits_the_accumulator(core, path, value, zero_point, m, num_bits, q):
    """With a zero point the result does not fit 32 bits, only what is summed up does."""
    k = packing.MAX_DEPTH
    packed = deepest(num_bits, q)
    x = np.full((m, k), value - zero_point, np.float32)
    form = {"num_bits": num_bits, "activations": "static", "zero_point": zero_point}
    y = core.matmul(x, packed, units=1, path=path, **form)
    assert (y == np.float32((value - zero_point) * q * k)).all()


@functools.cache
def deepest(num_bits, q):
    return packing.pack_matmul(np.full((packing.MAX_DEPTH, 1), q), np.ones(1), num_bits=num_bits)


def test_integers_are_exact_per_channel(core, path, rng):
    x = rng.integers(-127, 128, (11, 700)).astype(np.float32)
    x[:, 0] = 127  # the scale is one, and sums stay below 2^24
    q = rng.integers(-128, 128, (700, 50))
    packed = packing.pack_matmul(q, np.ones(50), num_bits=8)
    y = core.matmul(x, packed, units=50, num_bits=8, path=path)
    np.testing.assert_array_equal(y, x.astype(int) @ q)


def test_results_do_not_depend_on_the_number_of_threads(core, path, rng):
    for num_bits, group_size in FORMATS:
        _, _, packed = weights(num_bits, group_size, 1031, 331)
        for m in (1, 3, 140):
            x = rng.normal(size=(m, 1031)).astype(np.float32)
            form = {"units": 331, "num_bits": num_bits, "group_size": group_size, "path": path}
            one = core.matmul(x, packed, threads=1, **form)
            for threads in (2, 3):
                np.testing.assert_array_equal(core.matmul(x, packed, threads=threads, **form), one)


@pytest.mark.parametrize(("m", "offset"), [(5, 1), (5, 3), (5, 4), (5, 17), (20, 3)])
def test_pointers_need_no_alignment(core, path, m, offset, rng):
    for num_bits, group_size in FORMATS:
        _, _, packed = weights(num_bits, group_size, 257, 35)
        moved = aligned(packed.size, np.uint8, offset)
        moved[:] = packed
        x = aligned(m * 257, np.float32, offset).reshape(m, 257)
        x[:] = rng.normal(size=x.shape)
        form = {"units": 35, "num_bits": num_bits, "group_size": group_size, "path": path}
        out = aligned(m * 35, np.float32, offset).reshape(m, 35)
        core.matmul(x, moved, out=out, **form)
        np.testing.assert_array_equal(out, core.matmul(x.copy(), packed, **form))


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_bfloat16_is_the_float_result_rounded(core, path, activations, rng):
    for num_bits, group_size in FORMATS:
        if activations == "per_group" and not group_size:
            continue
        for m in (1, 9):
            brain = rng.normal(size=(m, 301)).astype(ml_dtypes.bfloat16)
            _, _, packed = weights(num_bits, group_size, 301, 40)
            form = {"units": 40, "num_bits": num_bits, "group_size": group_size, "path": path}
            form |= {"activations": activations, "x_scale": 0.02, "zero_point": 3}
            y = core.matmul(brain.view(np.uint16), packed, dtype="bfloat16", **form)
            expected = core.matmul(brain.astype(np.float32), packed, **form)
            rounded = expected.astype(ml_dtypes.bfloat16).view(np.uint16)
            np.testing.assert_array_equal(y, rounded)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_depths_agree_on_both_sides_of_a_stretch(core, path, activations, rng):
    """Tiles go through 2048 values of k, unpacked before from some tens of rows on."""
    for num_bits, group_size in FORMATS:
        if activations == "per_group" and not group_size:
            continue
        for m, k in ((1, 2049), (13, 2047), (40, 2049), (40, 4097)):
            x = rng.normal(size=(m, k)).astype(np.float32)
            check(core, path, x, num_bits, group_size, 17, activations)


@pytest.mark.parametrize("m", [127, 129, 257, 1023, 1024, 1025, 1033])
def test_rows_agree_on_both_sides_of_a_stripe_and_of_a_pass(core, path, m, rng):
    for num_bits, group_size, activations in (
        (4, 32, "per_group"),
        (8, 0, "static"),
        (2, 64, "float"),
        (1, 0, "per_row"),
    ):
        x = rng.normal(size=(m, 65)).astype(np.float32)
        check(core, path, x, num_bits, group_size, 17, activations, threads=2)


@pytest.mark.parametrize("fused", reference.FUSED)
def test_fused_functions_agree(core, path, fused, rng):
    x = rng.normal(size=(5, 64)).astype(np.float32) * 3
    q, scale, packed = weights(8, 0, 64, 70)
    form = {"num_bits": 8, "fused": fused}
    y = core.matmul(x, packed, units=70, path=path, **form)
    expected = reference.lowbit_matmul(x, q, scale, **form)
    # Slopes of these functions are below 1.13; float32 functions add a few units of 2^-24.
    linear = np.abs(reference.lowbit_matmul(x, q, scale, num_bits=8))
    bound = 1.13 * reference.lowbit_matmul_bound(x, q, scale, num_bits=8)
    np.testing.assert_array_less(np.abs(y - expected), bound + 2.0**-21 * (linear + 1))


@pytest.mark.parametrize("m", [6, 20])
def test_rows_that_are_not_finite_are_nan_alone(core, path, m, rng):
    x = rng.normal(size=(m, 96)).astype(np.float32)
    x[1, 40], x[4, 95] = np.inf, np.nan
    x[2] = 0
    finite = np.isfinite(x).all(-1)
    for num_bits, group_size in FORMATS[:-1]:
        _, _, packed = weights(num_bits, group_size, 96, 20)
        for mode in ("per_row", "per_group", "static"):
            if mode == "per_group" and not group_size:
                continue
            form = {"units": 20, "num_bits": num_bits, "group_size": group_size, "path": path}
            y = core.matmul(x, packed, activations=mode, **form)
            assert np.isnan(y[~finite]).all() and np.isfinite(y[finite]).all()
            assert not y[2].any()


@pytest.mark.parametrize("m", [7, 20])
def test_float_rows_of_any_size_are_right(core, path, m, rng):
    """Where floats are cut into parts, the parts of small ones must not vanish."""
    x = rng.normal(size=(m, 161))
    x *= np.resize([1e-36, 1, 1e33, 0, 1e-20, 1e20, 1e-30], m)[:, None]
    x[0, 3], x[2, 4] = 0, 1e-38
    for num_bits, group_size in FORMATS[:-1]:
        check(core, path, x.astype(np.float32), num_bits, group_size, 20, "float", bias=None)


@pytest.mark.parametrize("m", [3, 20])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_float_that_is_not_finite_spoils_its_row_only(core, path, m, value, rng):
    x = rng.normal(size=(m, 96)).astype(np.float32)
    x[1, 40] = value
    for num_bits, group_size in FORMATS[:-1]:
        q, _, packed = weights(num_bits, group_size, 96, 20)
        form = {"units": 20, "num_bits": num_bits, "group_size": group_size, "path": path}
        y = core.matmul(x, packed, activations="float", **form)
        finite = np.arange(m) != 1
        assert np.isfinite(y[finite]).all() and not np.isfinite(y[1]).any()
        if np.isinf(value):
            sure = q[40] != 0
            np.testing.assert_array_equal(y[1, sure], value * np.sign(q[40, sure]))


@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
def test_core_packs_the_bytes_of_the_drawing(core, num_bits, group_size):
    for k, n in ((1, 1), (33, 15), (130, 65)):
        q, scale, packed = weights(num_bits, group_size, k, n)
        found = core.pack(q, scale, num_bits=num_bits, group_size=group_size)
        np.testing.assert_array_equal(found, packed)


def test_an_empty_batch_is_empty(core, path):
    for num_bits, group_size in FORMATS:
        _, _, packed = weights(num_bits, group_size, 64, 5)
        form = {"units": 5, "num_bits": num_bits, "group_size": group_size, "path": path}
        for threads in (1, 2):
            x = np.zeros((0, 64), np.float32)
            assert core.matmul(x, packed, threads=threads, **form).shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_bits": 3}, "`num_bits` must be 8, 4, 2 or 1. Received: num_bits=3."),
        ({"group_size": 48}, "`group_size` must be 32, 64, 128 or 0"),
        ({"units": 33}, "`weights` must hold"),
        ({"activations": "per_group", "group_size": 0}, "only if the weights have groups"),
        ({"activations": "static", "x_scale": 0.0}, "`x_scale` must be positive and finite"),
        ({"activations": "static", "x_scale": np.nan}, "`x_scale` must be positive and finite"),
        ({"activations": "static", "zero_point": 128}, r"`zero_point` must lie in \[-128, 127\]"),
        ({"path": "vliw"}, "the path must be one that this processor supports"),
    ],
)
def test_core_refuses_what_is_wrong_in_words(core, change, words):
    _, _, packed = weights(4, 32, 64, 5)
    form = {"units": 5, "num_bits": 4, "group_size": 32} | change
    with pytest.raises(ValueError, match=words):
        core.matmul(np.zeros((2, 64), np.float32), packed, **form)


def test_core_refuses_a_foreign_header(core):
    packed = weights(4, 32, 64, 5)[2].copy()
    packed[0] ^= 1
    with pytest.raises(ValueError, match="header says otherwise"):
        core.matmul(np.zeros((2, 64), np.float32), packed, units=5, num_bits=4, group_size=32)


@pytest.mark.parametrize(
    ("scale", "q", "words"),
    [
        (np.inf, 0, "positive and finite"),
        (np.nan, 0, "positive and finite"),
        (-1.0, 0, "positive and finite"),
        (1.0, 8, r"Values must lie in \[-8, 7\]. Received: 8."),
    ],
)
def test_core_refuses_to_pack_bad_values(core, scale, q, words):
    with pytest.raises(ValueError, match=words):
        core.pack(np.full((4, 2), q, np.int8), np.array([1, scale], "f"), num_bits=4)


@pytest.mark.parametrize(("value", "works"), [("portable", True), ("vliw", False), ("", True)])
def test_the_environment_forces_a_path_or_fails_clearly(core, value, works):
    code = (
        "import ctypes, sys; c = ctypes.CDLL(sys.argv[1]);"
        "c.tfquant_chosen_path.restype = c.tfquant_error.restype = ctypes.c_char_p;"
        "print(c.tfquant_chosen_path(), c.tfquant_error())"
    )
    if value == "":
        expected = core.paths()[-1]
    else:
        expected = value if works else "Environment variable TFQUANT_PATH: the path must be one"
    done = subprocess.run(
        [sys.executable, "-c", code, core.file],
        env=os.environ | {"TFQUANT_PATH": value, "LD_LIBRARY_PATH": str(build.tensorflow_folder())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected in done.stdout


@pytest.mark.parametrize("which", ["q", "scale", "out", "weights"])
def test_core_refuses_null_arrays(core, which):
    c, i64 = library.open_c_library(core.file), ctypes.c_int64
    arrays = {"q": np.ones((4, 2), np.int8), "scale": np.ones(2, np.float32)}
    arrays["out"] = np.zeros(c.tfquant_packed_bytes(8, i64(0), i64(4), i64(2)), np.uint8)
    at = {k: None if k == which else ctypes.c_void_p(v.ctypes.data) for k, v in arrays.items()}
    layout = (8, i64(0), i64(4), i64(2))
    if which == "weights":
        code = c.tfquant_unpack(*layout, None, i64(arrays["out"].size), at["q"], at["scale"])
    else:
        code = c.tfquant_pack(*layout, at["q"], at["scale"], at["out"])
    assert code == -1 and c.tfquant_error().decode() == f"`{which}` must not be null."


@pytest.mark.parametrize(("k", "n"), [(2**31, 4), (4, 2**31 + 1), (2**62, 2**62), (0, 4), (4, -1)])
def test_sizes_that_overflow_are_refused(core, k, n):
    c, i64 = library.open_c_library(core.file), ctypes.c_int64
    assert c.tfquant_packed_bytes(4, i64(32), i64(k), i64(n)) == -1
    assert "must have 1 to 2^31 rows and columns" in c.tfquant_error().decode()
    largest = c.tfquant_packed_bytes(8, i64(32), i64(2**31 - 2), i64(2**31))
    assert largest > 2**62  # and has not overflowed


def test_core_says_when_there_is_no_library(tmp_path):
    with pytest.raises(OSError, match="nothing"):
        Core(tmp_path / "nothing.so")


def test_a_bound_call_keeps_what_it_fills(core):
    _, _, packed = weights(8, 0, 70, 19)
    form = {"units": 19, "num_bits": 8}
    call, out = core.bound_matmul(np.ones((2, 70), np.float32), packed, **form)
    held = weakref.ref(out)
    del out
    call()
    assert held() is not None
