"""Masks made by hand hide scores and leave the others their precision."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfquant as tfq

STEPS = 6
SHOWN = np.tril(np.ones((STEPS, STEPS), "float32"))[None]
ALIBI = -np.abs(np.arange(STEPS)[:, None] - np.arange(STEPS)[None]).astype("float32")[None]

# What the scores become, from the inputs and the scores.
CONSTANT = {
    "where": lambda x, s: ops.where(SHOWN > 0, s, -1e9),
    "where_inf": lambda x, s: ops.where(SHOWN > 0, s, -np.inf),
    "where_not": lambda x, s: ops.where(SHOWN == 0, -1e9, s),
    "where_scaled": lambda x, s: ops.where(SHOWN > 0, s / 3.0, -1e4),
    "add": lambda x, s: s + (1 - SHOWN) * -1e9,
    "add_first": lambda x, s: ops.add((1 - SHOWN) * -1e9, s),
    "subtract": lambda x, s: s - (1 - SHOWN) * 1e9,
    "keys": lambda x, s: s + np.array([0, 0, 0, 0, -1e9, -1e9], "float32"),
    "alibi": lambda x, s: s + (ALIBI + (1 - SHOWN) * -1e9),
    "alibi_where": lambda x, s: ops.where(SHOWN > 0, s + ALIBI, -1e9),
}

# The same, of a mask that is computed from the inputs.
COMPUTED = {
    "where": lambda x, s: ops.where(x[..., :STEPS] > 0, s, -1e9),
    "add": lambda x, s: s + ops.cast(x[..., :STEPS] < 0, "float32") * -1e9,
    "add_not": lambda x, s: s + (1 - ops.cast(x[..., :STEPS] > 0, "float32")) * -1e9,
    "add_where": lambda x, s: s + ops.where(x[..., :STEPS] > 0, 0.0, -1e9),
    "both": lambda x, s: ops.where(x[..., :STEPS] > 0, s + (1 - SHOWN) * -1e9, -1e9),
}

# The same, of a mask that is an input: as it is given, and what becomes of the scores.
GIVEN = {
    "bool": (lambda m: m, lambda m, s: ops.where(m, s, -1e9)),
    "float": (lambda m: m.astype("float32"), lambda m, s: s + (1.0 - m) * -1e9),
    "float_where": (lambda m: m.astype("float32"), lambda m, s: ops.where(m > 0.5, s, -1e9)),
    "int": (lambda m: m.astype("int32"), lambda m, s: s + (1 - ops.cast(m, s.dtype)) * -1e9),
    "numbers": (lambda m: np.where(m, 0, -1e9).astype("float32"), lambda m, s: s + m),
    "of_keys": (lambda m: np.where(m[:, 0], 0, -1e9).astype("f4"), lambda m, s: s + m[:, None]),
}


def inputs_of(rng):
    """Sequences none of whose comparisons with zero an 8-bit grid decides otherwise."""
    x = rng.normal(size=(64, STEPS, 8)).astype("float32")
    x[..., :STEPS] = np.where(np.abs(x[..., :STEPS]) < 0.15, 0.3, x[..., :STEPS])
    x[..., 0] = np.abs(x[..., 0]) + 0.5  # No row is hidden whole.
    return x


def attention(hide, *more):
    x = keras.Input((STEPS, 8))
    keys = ops.transpose(layers.Dense(8)(x), (0, 2, 1))
    scores = ops.matmul(layers.Dense(8)(x), keys)
    y = ops.matmul(ops.softmax(hide(more[0] if more else x, scores), -1), x)
    return keras.Model([x, *more] if more else x, y)


def graph_attention(adjacency, nodes):
    """A layer of a graph attention network (Velickovic et al., 2018, arXiv:1710.10903)."""
    h = layers.Dense(8)(nodes)
    to, of = layers.Dense(1)(h), ops.transpose(layers.Dense(1)(h), (0, 2, 1))
    scores = ops.leaky_relu(to + of, 0.2)
    return ops.matmul(ops.softmax(ops.where(adjacency > 0, scores, -1e9), -1), h)


def sqnr_of(model, data, path, scheme="w8a8"):
    q = tfq.quantize_model(model, scheme)
    tfq.calibrate(q, data, progress=False)
    report = tfq.to_tflite(q, path / "m.tflite", progress=False)
    assert not report.lost_layers
    noise = np.asarray(model(data), np.float64)
    signal, noise = np.sum(noise**2), np.sum((noise - np.asarray(q(data))) ** 2)
    return 10 * np.log10(signal / noise)


# The same attention without a mask has 32 to 34 dB.
LEAST = 29


@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_mask_leaves_scores_their_precision(rng, name, tmp_path):
    assert sqnr_of(attention(CONSTANT[name]), inputs_of(rng), tmp_path) > LEAST


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_mask_leaves_scores_their_precision(rng, name, tmp_path):
    assert sqnr_of(attention(COMPUTED[name]), inputs_of(rng), tmp_path) > LEAST


@pytest.mark.parametrize("name", GIVEN)
def test_a_given_mask_leaves_scores_their_precision(rng, name, tmp_path):
    as_given, hide = GIVEN[name]
    shown = (rng.uniform(size=(64, STEPS, STEPS)) > 0.5) | np.eye(STEPS, dtype=bool)
    shown[:, 0, 0] = True
    mask = as_given(shown)
    model = attention(hide, keras.Input(mask.shape[1:], dtype=mask.dtype.name))
    assert sqnr_of(model, [inputs_of(rng), mask], tmp_path) > LEAST


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_graph_attention_keeps_its_precision(rng, scheme, tmp_path):
    adjacency, nodes = keras.Input((STEPS, STEPS)), keras.Input((STEPS, 8))
    model = keras.Model([adjacency, nodes], graph_attention(adjacency, nodes))
    edges = (rng.uniform(size=(64, STEPS, STEPS)) > 0.5) | np.eye(STEPS, dtype=bool)
    data = [edges.astype("float32"), inputs_of(rng)]
    assert sqnr_of(model, data, tmp_path, scheme) > (40 if scheme == "w8a16" else LEAST)


def test_rows_that_are_hidden_whole_are_uniform(rng, tmp_path):
    x = inputs_of(rng)
    mask = np.ones((64, STEPS, STEPS), bool)
    mask[:, 2] = False
    shown = keras.Input((STEPS, STEPS), dtype="bool")
    model = attention(lambda m, s: ops.where(m, s, -1e9), shown)
    q = tfq.quantize_model(model)
    tfq.calibrate(q, [x, mask], progress=False)
    # The mean of all values, to within the steps of softmax, of values and of their product.
    np.testing.assert_allclose(q([x, mask])[:, 2], x.mean(axis=1), atol=0.1)


def test_large_numbers_that_no_softmax_reads_are_kept(rng, tmp_path):
    shown, x = keras.Input((STEPS, 8), dtype="bool"), keras.Input((STEPS, 8))
    model = keras.Model([shown, x], ops.where(shown, x, -200.0))
    data = [rng.uniform(size=(64, STEPS, 8)) > 0.5, inputs_of(rng)]
    q = tfq.quantize_model(model)
    tfq.calibrate(q, data, observer="min_max", progress=False)
    # To within the step of a grid that holds both.
    np.testing.assert_allclose(q(data), model(data), atol=210 / 255)
