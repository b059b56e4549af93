"""Layers that are called in several places: their integers serve all of their calls."""

import types

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.graph.graph import trace
from tfquant.optimize import BRECQ, GPTQ, AdaRound
from tfquant.optimize.gptq import prepare
from tfquant.rounding.moments import Moments
from tfquant.streams import Streams, ahead_of
from tfquant.wrappers import QuantizeWrapper

RECURRENT = {
    "lstm": lambda: layers.LSTM(12, name="rnn"),
    "gru": lambda: layers.GRU(12, reset_after=False, name="rnn"),
}
# What is gained at least, in dB.
GAINED = 1.0
ALGORITHMS = [GPTQ(), AdaRound(steps=10), BRECQ(steps=10)]


def correlated(rng, *shape):
    mixed = np.random.default_rng(7).normal(size=(shape[-1] // 2, shape[-1]))
    return (rng.normal(size=(*shape[:-1], len(mixed))) @ mixed).astype("float32")


def calibrated(model, data, scheme="w4a8"):
    return tfq.calibrate(tfq.quantize_model(model, scheme), data, progress=False)


def wrapper_of(q, name):
    found = {x.layer.name: x for x in q.layers if isinstance(x, QuantizeWrapper)}
    return found[name]


def kernel(q, name):
    return wrapper_of(q, name).layer.kernel.numpy()


def noise(model, q, x):
    return float(np.mean((model.predict(x, verbose=0) - q.predict(x, verbose=0)) ** 2))


def recurrent(make, rng):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 8))
    model = keras.Model(inputs, layers.Dense(4, name="last")(make()(inputs)))
    for variable in model.trainable_variables:  # States that matter, at every step.
        if "recurrent" in variable.path:
            variable.assign(1.5 * variable + rng.normal(0, 0.1, variable.shape))
    return model


# Cells whose states come back to them, four steps long.
STATEFUL = {
    "simple": lambda: layers.SimpleRNN(12),
    "bidirectional_simple": lambda: layers.Bidirectional(layers.SimpleRNN(12)),
    "gru_reset_after": lambda: layers.GRU(12),
    "bidirectional_lstm": lambda: layers.Bidirectional(layers.LSTM(12)),
    "stacked": lambda: layers.RNN([layers.LSTMCell(12), layers.GRUCell(12)]),
}


def sqnr(model, q, x):
    y = model.predict(x, verbose=0)
    return 10 * np.log10(np.mean((y - y.mean(axis=0)) ** 2) / noise(model, q, x))


@pytest.mark.parametrize("name", STATEFUL)
def test_outputs_of_cells_alone_come_closer_on_rows_that_were_not_seen(name, rng, caplog):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 8))
    model = keras.Model(inputs, STATEFUL[name]()(inputs))
    for variable in model.trainable_variables:
        if "recurrent" in variable.path:
            variable.assign(1.5 * variable + rng.normal(0, 0.1, variable.shape))
    seen, others = (correlated(rng, 128, 4, 8) / 4 for _ in range(2))
    q = calibrated(model, seen)
    before = sqnr(model, q, others)
    tfq.optimize(q, seen, "gptq", progress=False)
    assert q.optimization.taken and "came no closer" not in caplog.text
    assert sqnr(model, q, others) > before + GAINED


def test_a_layer_is_moved_towards_float_outputs_where_its_inputs_stay():
    """Inputs that are noise for a third of their power: least squares shrinks the weights."""
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(1, 4096, 6))
    halves = [Moments.of([(clean + noise, clean)]) for noise in rng.normal(0, 0.7, (2, 1, 4096, 6))]
    weights = rng.normal(size=(1, 6, 3))
    site = types.SimpleNamespace(
        moments=lambda _: halves,
        has_bias=True,
        weights=weights,
        streams=types.SimpleNamespace(batches=2),
    )
    for settled, shrunk in ((True, 1 / 1.49), (False, 1.0)):
        site.settled = settled
        prepare(site, rng, 0.01, refit=True)
        np.testing.assert_allclose(site.wanted, shrunk * weights, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_kernels_serve_rows_that_were_not_seen(name, rng, caplog):
    """Of 2 bits, all others of 8: what is gained is theirs."""
    model = recurrent(RECURRENT[name], rng)
    seen, others = (correlated(rng, 128, 4, 8) / 4 for _ in range(2))
    recipe = tfq.Recipe("w8a8").where(model.layers[1].name, "w2a8", algorithm="gptq")
    q = calibrated(model, seen, recipe)
    before = noise(model, q, others)
    tfq.optimize(q, seen, progress=False)
    assert noise(model, q, others) < 0.7 * before
    assert "keep the nearest" not in caplog.text


def test_a_shared_layer_is_rounded_as_one_that_reads_all_of_its_inputs(rng):
    """Twins, of float activations: the same as their layer alone, on the rows of both."""
    first, second = correlated(rng, 64, 16), 2 + correlated(rng, 64, 16)
    dense = layers.Dense(5, name="dense")
    left, right, both = (keras.Input((16,)) for _ in range(3))
    twins = keras.Model([left, right], [dense(left), dense(right)])
    alone = keras.Model(both, dense(both))
    options = {"batch_size": 64, "progress": False}
    expected = tfq.quantize_model(alone, "w4")
    tfq.optimize(expected, np.concatenate([first, second]), GPTQ(refit=False), **options)
    q = tfq.quantize_model(twins, "w4")
    tfq.optimize(q, [first, second], GPTQ(refit=False), **options)
    np.testing.assert_allclose(kernel(q, "dense"), kernel(expected, "dense"), rtol=1e-6)
    np.testing.assert_allclose(
        wrapper_of(q, "dense").layer.bias, wrapper_of(expected, "dense").layer.bias, atol=1e-5
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_a_layer_that_reads_itself_is_taken(algorithm, rng):
    shared = layers.Dense(16, activation="relu", name="shared")
    x = inputs = keras.Input((16,))
    for _ in range(3):
        x = layers.Add()([shared(x), x])
    model = keras.Model(inputs, layers.Dense(3, name="last")(x))
    seen, others = (correlated(rng, 128, 16) for _ in range(2))
    q = calibrated(model, seen)
    before, nearest = noise(model, q, others), kernel(q, "shared")
    tfq.optimize(q, seen, algorithm, progress=False)
    assert noise(model, q, others) < 0.7 * before
    assert (kernel(q, "shared") != nearest).any()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_twins_with_layers_of_their_own_in_front_are_taken(algorithm, rng):
    shared = layers.Conv1D(6, 3, activation="relu", name="shared")
    inputs = [keras.Input((8, 4)) for _ in range(2)]
    own = [layers.Conv1D(4, 1, name=f"own{n}")(x) for n, x in enumerate(inputs)]
    towers = [layers.Flatten()(shared(x)) for x in own]
    model = keras.Model(inputs, layers.Dense(3, name="last")(layers.Subtract()(towers)))
    seen, others = ([correlated(rng, 128, 8, 4) for _ in range(2)] for _ in range(2))
    q = calibrated(model, seen)
    before = noise(model, q, others)
    tfq.optimize(q, seen, algorithm, progress=False)
    assert noise(model, q, others) < 0.85 * before


def crossed():
    """Two layers, each of which reads what the other computes."""
    a, b = (layers.Dense(16, activation="tanh", name=name) for name in "ab")
    left, right = keras.Input((16,)), keras.Input((16,))
    return keras.Model([left, right], layers.Dense(3, name="last")(a(b(left)) + b(a(right))))


def test_layers_that_read_each_other_are_taken(rng, caplog):
    model, x = crossed(), [correlated(rng, 128, 16) for _ in range(2)]
    q = calibrated(model, x)
    before = noise(model, q, x)
    tfq.optimize(q, x, "gptq", progress=False)
    assert noise(model, q, x) < 0.7 * before
    assert "keep the nearest" not in caplog.text


def test_what_a_layer_changes_is_told_from_what_it_does_not():
    model = crossed()
    graph = trace(model)
    a, b = (model.get_layer(name) for name in "ab")
    names = lambda nodes: [node.layer.name for node in nodes]  # noqa: E731
    free, bound = ahead_of(graph, a, set(), {a})
    assert names(free) == ["b"] and sorted(names(bound)) == ["a", "a"]
    free, bound = ahead_of(graph, b, set(), {a, b})
    assert names(free) == [] and sorted(names(bound)) == ["a", "b", "b"]
    done = set(graph.calls(a)) | set(graph.calls(b))
    assert ahead_of(graph, a, done, {a}) == ([], [])


def test_later_calls_have_the_weights_of_the_float_model(rng):
    x = correlated(rng, 32, 16)
    dense = layers.Dense(16, name="shared")
    inputs = keras.Input((16,))
    model = keras.Model(inputs, dense(dense(inputs)))
    streams = Streams(q := calibrated(model, x), [[x]])
    first, second = streams.graph.calls(wrapper_of(q, "shared"))
    streams.remember(first.layer)
    streams.run_float(streams.graph.nodes[0])
    streams.run_float(first)
    chosen = np.zeros((16, 16))
    first.layer.give_integers(chosen, np.ones(first.layer.weight_quantizers[0][1].scale_shape))
    streams.run_float(second)
    computed = streams.held(second.outputs, quantized=False).array(0)
    np.testing.assert_allclose(computed, model(x), rtol=1e-2, atol=1e-2)  # Half precision.
    np.testing.assert_array_equal(kernel(q, "shared"), chosen)


def test_the_same_seed_chooses_the_same_integers(rng):
    model, x = recurrent(RECURRENT["lstm"], rng), correlated(rng, 64, 4, 8)
    first, second = (
        tfq.optimize(calibrated(model, x), x, "gptq", seed=3, progress=False) for _ in range(2)
    )
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
