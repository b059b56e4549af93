"""Arrays to integers and back, against arithmetic, and against the integers of models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant as tfq
from tfquant.numerics.codebooks import TABLES
from tfquant.quantizers.weight_only import GRIDS

GRANULARITIES = [tfq.PerTensor(), tfq.PerAxis(-1), tfq.PerAxis((0, 1)), tfq.PerGroup(-2, 8)]


def steps_of(w, granularity, shape):
    """One number for each weight: the range of what shares its step, found value by value."""
    labels = np.zeros(shape, int)
    if isinstance(granularity, tfq.PerAxis):
        for axis in granularity.axes:
            index = np.arange(shape[axis]).reshape([-1 if i == axis % 3 else 1 for i in range(3)])
            labels = labels * shape[axis] + index
    elif isinstance(granularity, tfq.PerGroup):
        rows = np.arange(shape[1])[None, :, None] // granularity.group_size
        first, last = np.arange(shape[0])[:, None, None], np.arange(shape[2])[None, None]
        labels = (first * 100 + rows) * 100 + last
    found = np.empty(shape)
    for label in np.unique(labels):
        part = w[labels == label]
        found[labels == label] = part.max() - part.min()
    return found


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("num_bits", [1, 3, 8, 12])
def test_asymmetric_values_are_within_half_a_step_of_their_range(granularity, num_bits, rng):
    w = rng.normal(2, 1, size=(3, 16, 5)).astype(np.float32)
    quantizer = tfq.WeightOnlyQuantizer(num_bits, grid="asymmetric", granularity=granularity)
    found = quantizer.dequantize(quantizer.quantize(w))
    step = steps_of(w, granularity, w.shape) / (2**num_bits - 1)
    assert (np.abs(found - w) <= step / 2 * 1.001 + 1e-6).all()


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("grid", GRIDS)
def test_more_bits_come_nearer_and_8_bits_near(grid, granularity, rng):
    w = rng.normal(size=(3, 16, 5)).astype(np.float32)
    errors = []
    for num_bits in (2, 4, 8):
        quantizer = tfq.WeightOnlyQuantizer(num_bits, grid=grid, granularity=granularity)
        quantized = quantizer.quantize(w)
        assert quantized.integers.max() < 2**num_bits
        errors.append(float(((quantizer.dequantize(quantized) - w) ** 2).mean()))
    if grid == "power_of_two":  # More bits are smaller powers: the large steps stay.
        assert errors[0] > errors[1] >= errors[2] and errors[2] < 0.05
    else:
        assert (
            errors[0] > errors[1] >= errors[2] and errors[2] < 1e-3
        )  # Few values may all be levels.


@pytest.mark.parametrize("grid", ["k_means", *TABLES])
def test_values_are_levels_times_steps(grid, rng):
    w = rng.normal(size=(20, 4)).astype(np.float32)
    quantizer = tfq.WeightOnlyQuantizer(3, grid=grid)
    quantized = quantizer.quantize({"w": w})["w"]
    values = quantizer.dequantize(quantized)
    for channel in range(4):
        levels = quantized.codebook if quantized.codebook.ndim == 1 else None
        levels = quantized.codebook[0, channel] if levels is None else levels
        expected = levels * quantized.scale[0, channel]
        picked = values[:, channel]
        assert np.isin(picked, expected.astype(np.float32)).all()
        nearest = np.abs(w[:, channel, None] - expected).argmin(1)
        np.testing.assert_allclose(picked, expected[nearest], rtol=1e-6)


@pytest.mark.parametrize("num_bits", [4, 8])
def test_symmetric_integers_are_those_of_a_quantized_model(num_bits):
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(7)])
    q = tfq.quantize_model(model, f"w{num_bits}")
    (wrapper,) = [x for x in q.layers if isinstance(x, tfq.QuantizeWrapper)]
    ((variable, quantizer),) = wrapper.weight_quantizers
    expected = keras.ops.convert_to_numpy(quantizer.call(variable.value))
    ours = tfq.WeightOnlyQuantizer(num_bits)
    kernel, bias = ours.dequantize(ours.quantize(model.get_weights()))
    np.testing.assert_array_equal(kernel, expected)
    np.testing.assert_array_equal(bias, model.get_weights()[1])


def test_weights_of_a_model_go_there_and_back():
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(6, 3), keras.layers.BatchNormalization()]
    )
    quantizer = tfq.WeightOnlyQuantizer(8)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    expected = model.predict(x, verbose=0)
    quantized = quantizer.quantize(model.get_weights())
    assert [type(w).__name__ for w in quantized] == ["QuantizedArray"] + ["ndarray"] * 5
    model.set_weights(quantizer.dequantize(quantized))
    found = model.predict(x, verbose=0)
    assert 0 < np.abs(found - expected).max() < 0.02


def test_variables_of_a_saved_model_go_there_and_back(tmp_path):
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(7)])
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    x = np.random.default_rng(0).normal(size=(4, 12)).astype("float32")
    expected = loaded.serve(x).numpy()
    quantizer = tfq.WeightOnlyQuantizer(8)
    quantized = quantizer.quantize({str(i): v for i, v in enumerate(loaded.variables)})
    for i, variable in enumerate(loaded.variables):
        variable.assign(quantizer.dequantize(quantized)[str(i)])
    np.testing.assert_allclose(loaded.serve(x).numpy(), expected, atol=0.05)
    assert (loaded.serve(x).numpy() != expected).any()


def test_what_is_no_weight_stays(rng):
    params = {"ids": np.arange(6).reshape(2, 3), "bias": np.ones(3, "float32"), "flag": True}
    found = tfq.WeightOnlyQuantizer(4).quantize(params)
    np.testing.assert_array_equal(found["ids"], params["ids"])
    np.testing.assert_array_equal(found["bias"], params["bias"])
    w = tfq.WeightOnlyQuantizer(4, min_rank=1).quantize(params)["bias"]
    assert w.granularity == tfq.PerTensor()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_dtype_comes_back(dtype, rng):
    w = tf.cast(rng.normal(size=(4, 4)), dtype)
    quantizer = tfq.WeightOnlyQuantizer(8)
    assert str(quantizer.dequantize(quantizer.quantize(w)).dtype) == dtype


def test_a_weight_that_groups_do_not_divide_has_channels(rng):
    quantizer = tfq.WeightOnlyQuantizer(4, granularity=tfq.PerGroup(-2, 32))
    small, large = quantizer.quantize([rng.normal(size=(27, 8)), rng.normal(size=(64, 8))])
    assert small.granularity == tfq.PerAxis(-1) and small.scale.shape == (1, 8)
    assert large.scale.shape == (2, 8)


def test_bytes_are_those_of_packed_integers_and_tables(rng):
    w = rng.normal(size=(33, 8)).astype(np.float32)
    sized = lambda **kw: tfq.WeightOnlyQuantizer(4, **kw).quantize(w).num_bytes  # noqa: E731
    assert sized() == 33 * 8 // 2 + 8 * 4
    assert sized(grid="asymmetric", granularity=tfq.PerTensor()) == 33 * 8 // 2 + 8
    assert sized(grid="k_means") == 33 * 8 // 2 + 8 * 4 + 8 * 16 * 4


@pytest.mark.parametrize("grid", GRIDS)
def test_constants_and_zeros_come_back(grid):
    for value in (0.0, 1.0):
        w = np.full((4, 3), value, np.float32)
        quantizer = tfq.WeightOnlyQuantizer(4, grid=grid)
        np.testing.assert_allclose(quantizer.dequantize(quantizer.quantize(w)), w, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_bits": 1}, "from 2 to 16 for 'symmetric'. Received: 1"),
        ({"num_bits": 9, "grid": "nf"}, "from 2 to 8 for 'nf'. Received: 9"),
        ({"num_bits": 4.0}, "Received: 4.0"),
        ({"num_bits": True}, "Received: True"),
        ({"grid": "nf4"}, "one of 'symmetric', .* Received: 'nf4'"),
        ({"granularity": "channel"}, "tfq.PerTensor, .* Received: 'channel'"),
        ({"min_rank": -1}, "number of axes.* Received: -1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tfq.WeightOnlyQuantizer(**kwargs)


def test_values_that_are_not_finite_are_named_by_place():
    params = {"a": [np.ones((2, 2), "float32"), np.float32([[1, np.nan]])]}
    with pytest.raises(ValueError, match="not finite at a/1"):
        tfq.WeightOnlyQuantizer(4).quantize(params)
    with pytest.raises(ValueError, match="no values"):
        tfq.WeightOnlyQuantizer(4).quantize(np.empty((0, 3), "float32"))
