import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tfquant.numerics import packing


def random_weights(num_bits, group_size, k, n, seed=0):
    rng = np.random.default_rng(seed)
    if num_bits == 1:
        q = rng.choice([-1, 1], (k, n))
    else:
        q = rng.integers(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1), (k, n))
    groups = -(-k // group_size) if group_size else 1
    scale = np.exp(rng.normal(size=(groups, n))).astype(np.float32)
    return q.astype(np.int8), scale


@pytest.mark.parametrize("num_bits", [8, 4, 2, 1])
@pytest.mark.parametrize("columns", [0, 1, 2, 3, 4, 5, 7, 8, 9, 31])
def test_unpack_inverts_pack(num_bits, columns):
    values = np.random.default_rng(columns).integers(0, 2**num_bits, (3, columns))
    packed = packing.pack(values, num_bits)
    assert packed.shape == (3, -(-columns * num_bits // 8))
    np.testing.assert_array_equal(packing.unpack(packed, num_bits, columns), values)


def test_lowest_bits_come_first():
    np.testing.assert_array_equal(packing.pack([1, 2, 3], 4), [0x21, 0x03])
    np.testing.assert_array_equal(packing.pack([0, 1, 2, 3, 1], 2), [0b11100100, 0b01])
    np.testing.assert_array_equal(packing.pack([1, 0, 0, 0, 0, 0, 0, 1, 1], 1), [0x81, 0x01])


@pytest.mark.parametrize("num_bits", [8, 4, 2])
def test_a_block_lies_as_drawn(num_bits):
    q, scale = random_weights(num_bits, 0, 32, 16)
    block = packing.pack_matmul(q, scale, num_bits=num_bits)[64:]
    v = q.astype(int) + 2 ** (num_bits - 1)
    parts = 8 // num_bits
    for row in range(num_bits):
        for column in range(16):
            for byte in range(4):
                expected = sum(
                    v[4 * parts * row + 4 * part + byte, column] << (part * num_bits)
                    for part in range(parts)
                )
                assert block[64 * row + 4 * column + byte] == expected


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("k", [1, 31, 32, 33, 127, 128, 129, 257])
def test_matmul_weights_survive_with_scales_rounded_to_half(group_size, k):
    q, scale = random_weights(4, group_size, k, 17)
    packed = packing.pack_matmul(q, scale, num_bits=4, group_size=group_size)
    found, found_scale = packing.unpack_matmul(packed, num_bits=4, group_size=group_size, k=k, n=17)
    np.testing.assert_array_equal(found, q)
    np.testing.assert_allclose(found_scale, scale, rtol=2.0**-11)  # half a step of float16


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    num_bits=st.sampled_from([8, 4, 2, 1]),
    group_size=st.sampled_from([0, 32, 64, 128]),
    k=st.integers(1, 300),
    n=st.integers(1, 70),
)
def test_any_matmul_weights_survive(num_bits, group_size, k, n):
    group_size = 0 if num_bits == 1 else group_size
    q, scale = random_weights(num_bits, group_size, k, n, seed=k * 71 + n)
    packed = packing.pack_matmul(q, scale, num_bits=num_bits, group_size=group_size)
    layout = {"num_bits": num_bits, "group_size": group_size, "k": k, "n": n}
    assert packed.size == packing.matmul_shape(**layout)[-1]
    found, found_scale = packing.unpack_matmul(packed, **layout)
    np.testing.assert_array_equal(found, q)
    if group_size == 0:
        np.testing.assert_array_equal(found_scale, scale)


@pytest.mark.parametrize("exponent", [-120, -40, 0, 40, 120])
def test_group_scales_keep_their_precision_at_any_magnitude(exponent):
    scale = np.ldexp(np.linspace(1, 200, 12, dtype=np.float32).reshape(4, 3), exponent)
    halves, factor = packing.split_scale(scale)
    np.testing.assert_allclose(halves.astype(np.float32) * factor, scale, rtol=2.0**-11)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_bits": 3}, "`num_bits` must be 8, 4, 2 or 1. Received: num_bits=3."),
        ({"group_size": 48}, "Received: group_size=48."),
        ({"num_bits": 1, "group_size": 32}, "1-bit weights have one scale per channel"),
        ({"q": np.zeros((4,))}, "`q` must have the shape"),
        ({"q": np.full((4, 2), 8)}, r"Values must lie in \[-8, 7\]. Received: 8."),
        ({"q": np.zeros((4, 2)), "num_bits": 1}, "1-bit values must be -1 or 1. Received: 0"),
        ({"scale": np.array([1.0, 0.0])}, "positive and finite. Received: 0.0."),
        ({"scale": np.array([1.0, np.inf])}, "positive and finite. Received: inf."),
        ({"scale": np.array([np.nan, 1.0])}, "positive and finite. Received: nan."),
        ({"scale": np.ones((2, 2))}, "`scale` must have the shape"),
        ({"q": np.zeros((0, 2))}, "1 to 2"),
        ({"q": np.zeros((131072, 2), np.int8)}, "at most 131071 rows"),
    ],
)
def test_wrong_weights_are_refused(arguments, words):
    given = {"q": np.zeros((4, 2), np.int8), "scale": np.ones(2), "num_bits": 4} | arguments
    with pytest.raises(ValueError, match=words):
        packing.pack_matmul(given.pop("q"), given.pop("scale"), **given)


def test_wrong_bytes_are_refused():
    packed = packing.pack_matmul(np.zeros((33, 2)), np.ones(2), num_bits=4)
    layout = {"num_bits": 4, "group_size": 0, "k": 33, "n": 2}
    with pytest.raises(ValueError, match=f"Received: {packed.size - 1} bytes."):
        packing.unpack_matmul(packed[:-1], **layout)
    with pytest.raises(ValueError, match="a buffer whose header says otherwise"):
        packing.unpack_matmul(packed, **layout | {"k": 34})
    with pytest.raises(ValueError, match="The last axis must hold 2 bytes"):
        packing.unpack(np.zeros((3, 1), np.uint8), 4, 3)
    with pytest.raises(ValueError, match="Values must lie in"):
        packing.pack([16], 4)
