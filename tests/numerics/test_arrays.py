"""Weights have the same integers in NumPy, outside of graphs, and in a graph."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfquant as tfq
from tfquant.configs.linear import LinearConfig
from tfquant.numerics import PerAxis, PerGroup, PerTensor, QuantSpec
from tfquant.numerics.arrays import ARRAYS, arithmetic, array_of
from tfquant.quantizers import AbsMax


def weights(rng):
    """Values of every size that float32 holds, zeros, ties of a grid and a dead channel."""
    w = rng.normal(size=(64, 7)) * np.exp(rng.uniform(-60, 60, (64, 7)))
    w[:, 1], w[::3, 2] = 0.0, -0.0
    w[:, 3] = np.arange(64) - 31.5
    return w.astype("float32")


@pytest.mark.parametrize("num_bits", [2, 4, 8, 16])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(1), PerGroup(0, 16)])
def test_an_array_is_rounded_to_the_bits_of_a_tensor(granularity, num_bits, rng):
    w = weights(rng)
    quantizer = AbsMax(QuantSpec(num_bits, symmetric=True, granularity=granularity))
    quantizer.build(w.shape)
    quantizer.fit(w)
    for function in (quantizer.call, quantizer.steps, lambda w: quantizer.params(w).scale):
        y = function(w)
        assert isinstance(y, np.ndarray)
        for expected in (function(ops.array(w)), tf.function(function)(ops.array(w))):
            np.testing.assert_array_equal(y, np.asarray(expected))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a8_g32", "w8"])
@pytest.mark.parametrize("input_scale", [None, 0.037])
def test_a_folded_kernel_has_the_bits_that_the_backend_computes(
    scheme, input_scale, rng, monkeypatch
):
    x = keras.Input((5, 32))
    y = layers.BatchNormalization()(layers.Dense(6, use_bias=False)(x))
    model = keras.Model(x, layers.BatchNormalization()(layers.Conv1D(4, 3)(y)))
    for v in model.weights:
        v.assign(rng.uniform(0.01, 3, v.shape) * np.exp(rng.uniform(-9, 9, v.shape[-1])))
    q = tfq.quantize_model(model, scheme)
    wrappers = [
        x for x in q.layers if isinstance(getattr(x, "quantize_config", None), LinearConfig)
    ]

    def computed():
        configs = [(wrapper, wrapper.quantize_config) for wrapper in wrappers]
        return [
            *(x for w, config in configs for x in config.integer_weights(w, input_scale)),
            *(x for w, config in configs for x in config.real_weights(w)),
        ]

    arrays = computed()
    # In a graph its optimizer would multiply in another order.
    monkeypatch.setattr("tfquant.configs.linear.at_hand", lambda v: v.value)
    monkeypatch.setattr("tfquant.configs.linear.array_of", lambda x: x)
    tensors = computed()
    assert len(wrappers) == 2 and any(map(tf.is_tensor, tensors))
    assert not any(map(tf.is_tensor, arrays))
    for array, tensor in zip(arrays, tensors, strict=True):
        np.testing.assert_array_equal(array, tensor)


def test_what_holds_a_tensor_is_computed_by_the_backend():
    array, tensor = np.ones(2, "float32"), ops.ones(2)
    assert arithmetic(array, 1.0, np.float32(2)) is ARRAYS
    assert arithmetic(array, tensor) is ops
    assert tf.function(lambda: arithmetic(array_of(ops.ones(2))) is ops)()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int16", "bool"])
def test_the_array_of_a_tensor_has_its_values(dtype):
    x = ops.cast(ops.array([[0.0, 1.0, 1.0]]), dtype)
    np.testing.assert_array_equal(
        array_of(x).astype("float32"), ops.convert_to_numpy(ops.cast(x, "float32"))
    )


def test_variables_of_grids_have_paths_of_their_own():
    x = keras.Input((4,))
    q = tfq.quantize_model(keras.Model(x, layers.Dense(3)(layers.Dense(3)(x))))
    paths = [v.path for v in q.variables]
    assert len(set(paths)) == len(paths)
