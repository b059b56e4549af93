import re

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tfquant.data.batches import batches

ONE = [keras.KerasTensor((None, 4, 3), name="image")]
TWO = [
    keras.KerasTensor((None, 3), name="left"),
    keras.KerasTensor((None, 2), "int32", name="right"),
]
FIXED = [keras.KerasTensor((4, 3), name="x")]


def images(rng, length=10):
    return rng.normal(size=(length, 4, 3)).astype(np.float32)


def pair(rng, length=10):
    left = rng.normal(size=(length, 3)).astype(np.float32)
    return left, rng.integers(-9, 9, size=(length, 2), dtype=np.int32)


def whole(result):
    """All batches joined along the first axis, one array for each input."""
    return [np.concatenate(parts) for parts in zip(*result, strict=True)]


def assert_same(result, *expected):
    got = whole(result)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


class Pairs(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.x[4 * index : 4 * index + 4], np.zeros(4)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
def test_array_batches_hold_every_sample_once_and_in_order(length, rng):
    x = images(rng, length)
    result = batches(x, ONE, batch_size=4)
    assert result.total == -(-length // 4)
    assert [len(b[0]) for b in result] == [min(4, length - i) for i in range(0, length, 4)]
    assert_same(result, x)


ONE_INPUT = {
    "array": lambda x: x,
    "list": lambda x: [x],
    "tuple": lambda x: (x,),
    "dict": lambda x: {"image": x},
    "x and y": lambda x: (x, np.zeros(len(x))),
    "x, y and weight": lambda x: (x, np.zeros(len(x)), np.ones(len(x))),
    "nested x and y": lambda x: ({"image": x}, np.zeros(len(x))),
    "tensor": tf.constant,
    "variable": keras.Variable,
    "generator": lambda x: (x[i : i + 4] for i in (0, 4, 8)),
    "list iterator": lambda x: iter([x[:4], x[4:]]),
    "iterator of tensors": lambda x: iter([tf.constant(x[:4]), tf.constant(x[4:])]),
    "iterator of lists": lambda x: iter([[x[:4]], [x[4:]]]),
    "iterator of x and y": lambda x: iter([(x[:4], np.zeros(4)), (x[4:], np.zeros(6))]),
    "iterator of dicts": lambda x: iter([{"image": x[:4]}, {"image": x[4:]}]),
    "callable": lambda x: lambda: (x[i : i + 4] for i in (0, 4, 8)),
    "batched dataset": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(3),
    "unbatched dataset": tf.data.Dataset.from_tensor_slices,
    "dataset of x and y": lambda x: tf.data.Dataset.from_tensor_slices((x, np.zeros(10))).batch(3),
    "unbatched dataset of x and y": lambda x: tf.data.Dataset.from_tensor_slices((x, np.zeros(10))),
    "dataset of dicts": lambda x: tf.data.Dataset.from_tensor_slices({"image": x}),
    "py_dataset": Pairs,
}


@pytest.mark.parametrize("form", ONE_INPUT)
def test_every_form_of_data_gives_the_same_samples(form, rng):
    x = images(rng)
    assert_same(batches(ONE_INPUT[form](x), ONE, batch_size=4), x)


TWO_INPUTS = {
    "list": list,
    "tuple": tuple,
    "dict": lambda p: {"right": p[1], "left": p[0]},
    "x and y": lambda p: (p, np.zeros(10)),
    "lists and y": lambda p: (list(p), np.zeros(10), np.zeros(10)),
    "iterator of tuples": lambda p: iter([p]),
    "iterator of x and y": lambda p: iter([(p, np.zeros(10))]),
    "dataset of tuples": tf.data.Dataset.from_tensor_slices,
    "dataset of x and y": lambda p: tf.data.Dataset.from_tensor_slices((p, np.zeros(10))).batch(4),
    "dataset of dict and y": lambda p: tf.data.Dataset.from_tensor_slices(
        ({"right": p[1], "left": p[0]}, np.zeros(10))
    ),
}


@pytest.mark.parametrize("form", TWO_INPUTS)
def test_every_form_of_two_inputs_comes_in_input_order(form, rng):
    left, right = pair(rng)
    assert_same(batches(TWO_INPUTS[form]((left, right)), TWO, batch_size=4), left, right)


def test_functional_models_name_their_inputs_as_the_data_does(rng):
    model = keras.Sequential([keras.Input((4, 3), name="image"), keras.layers.Flatten()])
    x = images(rng)
    assert_same(batches({"image": x}, model.inputs, batch_size=4), x)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int64, np.bool_, np.float16, np.float64, ml_dtypes.bfloat16]
)
def test_numbers_for_a_float_input_become_float32(dtype, rng):
    x = rng.integers(0, 2, size=(5, 4, 3)).astype(dtype)
    (got,) = whole(batches(x, ONE, batch_size=2))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, x.astype(np.float32))


def test_float16_inputs_are_fed_float32(rng):
    inputs = [keras.KerasTensor((None, 4, 3), "float16", name="x")]
    assert whole(batches(images(rng), inputs, batch_size=4))[0].dtype == np.float32


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
def test_inputs_of_integers_keep_their_dtype(dtype):
    inputs = [keras.KerasTensor((None, 2), dtype, name="ids")]
    (got,) = whole(batches(np.array([[0, 1], [1, 0]]) > 0, inputs, batch_size=1))
    assert got.dtype == dtype


@pytest.mark.parametrize("steps", [1, 2, 3, 99])
@pytest.mark.parametrize("form", ["array", "generator", "unbatched dataset", "py_dataset"])
def test_steps_stops_early_and_no_earlier(steps, form, rng):
    result = batches(ONE_INPUT[form](images(rng)), ONE, batch_size=4, steps=steps)
    assert len(list(result)) == min(3, steps)


def test_total_is_known_where_the_data_knows_it(rng):
    x = images(rng)
    dataset = tf.data.Dataset.from_tensor_slices(x)
    totals = [
        (batches(x, ONE, 4).total, 3),
        (batches(x, ONE, 4, steps=2).total, 2),
        (batches(dataset, ONE, 4).total, 3),
        (batches(dataset.batch(5), ONE, 4).total, 2),
        (batches(dataset.filter(lambda x: True), ONE, 4).total, None),
        (batches(dataset.repeat(), ONE, 4, steps=7).total, 7),
        (batches(Pairs(x), ONE, 4).total, 3),
        (batches((x for _ in "ab"), ONE, 4).total, None),
        (batches((x for _ in "ab"), ONE, 4, steps=5).total, 5),
        (batches(lambda: iter([x]), ONE, 4).total, None),
    ]
    assert [got for got, _ in totals] == [want for _, want in totals]


def test_a_callable_can_be_iterated_again_and_a_generator_says_that_it_cannot(rng):
    x = images(rng)
    again = batches(lambda: iter([x]), ONE, batch_size=4)
    assert len(list(again)) == len(list(again)) == 1
    once = batches((x for _ in "a"), ONE, batch_size=4)
    assert len(list(once)) == 1
    with pytest.raises(ValueError, match="a generator can be read only once"):
        list(once)


def test_a_streaming_batch_is_not_read_before_it_is_needed(rng):
    def stream():
        yield images(rng)
        raise RuntimeError("read too far")

    assert len(next(iter(batches(stream, ONE, batch_size=4)))) == 1


def test_a_fixed_batch_dimension_overrules_the_batch_size(rng):
    x = rng.normal(size=(10, 3)).astype(np.float32)
    assert_same(batches(x, FIXED, batch_size=32), x[:8])
    assert_same(batches(tf.data.Dataset.from_tensor_slices(x), FIXED, batch_size=32), x[:8])
    with pytest.raises(ValueError, match=r"batch dimension of 4.*Received: 3 samples"):
        batches(x[:3], FIXED, batch_size=1)
    with pytest.raises(ValueError, match=r"shape \(4, 3\). Received: shape \(5, 3\)"):
        list(batches(iter([x[:5]]), FIXED, batch_size=5))


def test_free_dimensions_may_differ_from_batch_to_batch():
    inputs = [keras.KerasTensor((None, None, 3), name="sequence")]
    got = list(batches(iter([np.zeros((2, 5, 3)), np.zeros((2, 7, 3))]), inputs, batch_size=2))
    assert [x.shape for (x,) in got] == [(2, 5, 3), (2, 7, 3)]


def broken(make):
    """The same bad array whole and as the second batch of a stream."""
    good = np.zeros((2, 4, 3))
    return pytest.mark.parametrize(
        ("data", "where"),
        [(make(), "Input 'image'"), (lambda: iter([good, make()]), "Input 'image' of batch 1")],
        ids=["array", "stream"],
    )


@broken(lambda: np.zeros((2, 4, 4)))
def test_a_wrong_shape_is_an_error(data, where):
    expected = rf"{where} must have the shape \(None, 4, 3\). Received: shape \(2, 4, 4\)"
    with pytest.raises(ValueError, match=expected):
        list(batches(data, ONE, batch_size=2))


@broken(lambda: np.zeros((4, 3)))
def test_a_missing_batch_dimension_is_an_error(data, where):
    with pytest.raises(ValueError, match=rf"{where} must have .*Received: shape \(4, 3\)"):
        list(batches(data, ONE, batch_size=2))


@broken(lambda: np.zeros((0, 4, 3)))
def test_empty_data_is_an_error(data, where):
    with pytest.raises(ValueError, match=rf"{where} must not be empty. Received: shape \(0, 4"):
        list(batches(data, ONE, batch_size=2))


@pytest.mark.parametrize("form", [lambda: iter([]), lambda: lambda: [], lambda: (x for x in "")])
def test_an_empty_stream_is_an_error(form):
    with pytest.raises(ValueError, match="at least one batch"):
        list(batches(form(), ONE, batch_size=2))


@pytest.mark.parametrize(
    "value", ["a", b"a", None, 1j, np.datetime64("2026-01-01")], ids=lambda v: type(v).__name__
)
def test_what_is_not_a_number_is_an_error(value):
    x = np.full((2, 4, 3), value)
    with pytest.raises(
        ValueError, match=re.escape(f"'image' must hold numbers. Received: dtype {x.dtype}.")
    ):
        batches(x, ONE, batch_size=2)


def test_floats_for_an_integer_input_are_an_error(rng):
    left, right = pair(rng)
    with pytest.raises(ValueError, match=r"'right' must hold int32. Received: dtype float32"):
        batches([left, right.astype(np.float32)], TWO, batch_size=2)


def test_integers_that_do_not_fit_are_an_error(rng):
    left, right = pair(rng)
    with pytest.raises(
        ValueError, match=f"'right' of batch 0 must fit int32. Received: .* to {2**31}"
    ):
        batches([left, np.where(right > 0, 2**31, right.astype(np.int64))], TWO, batch_size=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_nan_and_inf_are_found_in_the_last_batch_before_the_first_is_used(value):
    x = np.zeros((7, 4, 3))
    x[6, 1, 2] = value
    with pytest.raises(ValueError, match=r"'image' of batch 2 must be finite in float32.*sample 0"):
        batches(x, ONE, batch_size=3)
    stream = iter(batches(iter([x[:5], x[5:]]), ONE, batch_size=3))
    next(stream)
    with pytest.raises(ValueError, match=r"'image' of batch 1 must be finite.*1 values.*sample 1"):
        next(stream)


def test_ragged_lists_are_an_error():
    with pytest.raises(ValueError, match="'left' must be an array of shape"):
        batches([[[1.0, 2.0, 3.0], [1.0]], np.zeros((2, 2), int)], TWO, batch_size=2)


def test_missing_and_unknown_names_are_an_error(rng):
    left, right = pair(rng)
    with pytest.raises(ValueError, match=r"missing: \['right'\], unknown: \['wrong'\]"):
        batches({"left": left, "wrong": right}, TWO, batch_size=2)
    with pytest.raises(ValueError, match=r"The dict of batch 0 must have the keys"):
        list(batches(iter([{"left": left}]), TWO, batch_size=2))
    with pytest.raises(ValueError, match=r"unknown: \['extra'\]"):
        batches({"left": left, "right": right, "extra": right}, TWO, batch_size=2)


def test_different_lengths_are_an_error(rng):
    left, right = pair(rng)
    with pytest.raises(ValueError, match=r"same length. Received: {'left': 10, 'right': 9}"):
        batches([left, right[:9]], TWO, batch_size=2)
    with pytest.raises(ValueError, match="All inputs of batch 0 must have the same length"):
        list(batches(iter([[left, right[:9]]]), TWO, batch_size=2))


def test_a_wrong_number_of_arrays_is_an_error(rng):
    x = images(rng)
    with pytest.raises(ValueError, match=r"must be one array .*Received: list of 2.*iter\(list\)"):
        batches([x, x], ONE, batch_size=2)
    with pytest.raises(ValueError, match=r"must be 2 arrays .*\['left', 'right'\]"):
        batches(x, TWO, batch_size=2)
    with pytest.raises(ValueError, match=r"The data of batch 0 must be 2 arrays"):
        list(batches(iter([x]), TWO, batch_size=2))


@pytest.mark.parametrize("data", ["images.npy", b"", None, 3, object()])
def test_what_is_no_data_is_an_error(data):
    with pytest.raises(ValueError, match=rf"Received: {type(data).__name__}\."):
        batches(data, ONE, batch_size=2)


@pytest.mark.parametrize("number", [0, -1, 2.0, "2"])
def test_batch_size_and_steps_must_be_positive_integers(number, rng):
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        batches(images(rng), ONE, batch_size=number)
    with pytest.raises(ValueError, match="`steps` must be a positive integer"):
        batches(images(rng), ONE, batch_size=2, steps=number)


def test_an_endless_dataset_needs_steps(rng):
    endless = tf.data.Dataset.from_tensor_slices(images(rng)).repeat()
    with pytest.raises(ValueError, match="`steps` is needed"):
        batches(endless, ONE, batch_size=2)


def test_inputs_of_strings_stay_strings():
    inputs = [keras.KerasTensor((None, 1), "string", name="text")]
    ((batch,),) = batches(np.array([["a"], ["b"]]), inputs, batch_size=2)
    assert batch.tolist() == [["a"], ["b"]]


def test_numbers_are_no_strings():
    inputs = [keras.KerasTensor((None, 1), "string", name="text")]
    with pytest.raises(ValueError, match=r"must hold string\. Received: dtype float64"):
        batches(np.zeros((2, 1)), inputs, batch_size=2)
