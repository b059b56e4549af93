"""Channels scaled between layers: float outputs agree before and after, whatever the factors."""

import types

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.graph.graph import trace
from tfquant.graph.runner import Runner
from tfquant.optimize import ALGORITHMS, GPTQ
from tfquant.optimize.scale import AWQ, Scaling, SmoothQuant
from tfquant.quantizers import RecordingScope
from tfquant.scaling import equalize, look, pairs_of, rescale, search, smooth
from tfquant.scaling.pairs import carrying, settled
from tfquant.wrappers import QuantizeWrapper

# What says how large factors are, of a `Pair` that was looked at.
FACTORS = {
    "equalize": equalize,
    "smoothquant": smooth,
    "awq": search,
    "any": lambda pair: np.random.default_rng(0).uniform(0.1, 10, pair.channels),
}
NAMES = sorted(name for name, kind in ALGORITHMS.items() if issubclass(kind, Scaling))


def images_network():
    """Convolutions of every kind in front of each other, norms, pooling, flattening."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = layers.LeakyReLU()(x)
    x = layers.Conv2D(6, 1, name="pointwise")(layers.ZeroPadding2D()(x))
    x = layers.MaxPooling2D()(layers.BatchNormalization(scale=True, center=False)(x))
    x = layers.Conv2D(4, 3, groups=2, activation="relu", name="grouped")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(4, name="last")(x))


def twice_read():
    """One layer that two read, one of them behind an average."""
    inputs = keras.Input((10, 6))
    x = layers.Dense(8, activation="relu", name="first")(inputs)
    a = layers.Dense(5, use_bias=False, name="left")(layers.GlobalAveragePooling1D()(x))
    b = layers.Conv1D(5, 3, name="right")(x)
    return keras.Model(inputs, [a, b])


def kept():
    """Layers whose channels must stay, each for a reason of its own."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu6", name="bounded")(inputs)
    x = short = layers.Conv2D(4, 3, padding="same", name="summed")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="tanh", name="curved")(x)
    x = layers.Add(name="sum")([x, short])
    shared = layers.Conv2D(4, 1, name="shared")
    x = shared(shared(x))
    x = layers.Conv2D(4, 1, name="front")(x)
    x = layers.Conv2D(4, 3, groups=2, name="grouped")(x)
    return keras.Model(inputs, x)


MODELS = {"images": images_network, "twice_read": twice_read, "kept": kept}


def made(name):
    keras.utils.set_random_seed(1)
    model, rng = MODELS[name](), np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.3, 2, w.shape) for w in layer.get_weights()])
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(size=layer.bias.shape))
    return model


def rows(model, rng, count=64):
    return rng.normal(size=(count, *model.inputs[0].shape[1:])).astype("float32")


def float_outputs(q, x):
    """What the float model behind a quantized one puts out."""
    undo = [layer.originals.snapshot() for layer in q.layers if isinstance(layer, QuantizeWrapper)]
    for layer in q.layers:
        if isinstance(layer, QuantizeWrapper):
            layer.originals.restore()
    with RecordingScope(quantize_weights=False, see=lambda *_: None):
        found = [np.asarray(y) for y in Runner(q)([x])]
    for put_back in undo:
        put_back()
    return found


def calibrated(model, x, scheme="w4a8"):
    return tfq.calibrate(tfq.quantize_model(model, scheme), x, progress=False)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", FACTORS)
def test_float_outputs_agree_before_and_after(model, name, rng):
    kept_as_it_is, model = model == "kept", made(model)
    x = rows(model, rng)
    q = tfq.quantize_model(model, "w4a8")
    before = float_outputs(q, x)
    pairs, _ = pairs_of(trace(q))
    look(q, pairs, [x])
    kernels = [w.copy() for w in q.get_weights()]
    for pair in pairs:
        rescale(pair, FACTORS[name](pair))
    # Rounding of float32, layer by layer.
    for expected, found in zip(before, float_outputs(q, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    changed = any((a != b).any() for a, b in zip(kernels, q.get_weights(), strict=True))
    assert changed == bool(pairs) == (not kept_as_it_is)


def names_of(model):
    pairs, left = pairs_of(trace(tfq.quantize_model(made(model), "w4a8")))
    return {p.name: [reader.layer.name for reader in p.readers] for p in pairs}, left


def test_pairs_are_found_through_what_scales_alike():
    pairs, left = names_of("images")
    assert pairs == {
        "conv": ["depthwise"],
        "depthwise": ["pointwise"],
        "grouped": ["hidden"],
        "hidden": ["last"],
    }
    assert left["pointwise"] == "'grouped' reads it"
    assert left["last"] == "the model puts out what it computes"
    pairs, left = names_of("twice_read")
    assert {name: sorted(readers) for name, readers in pairs.items()} == {
        "first": ["left", "right"]
    }


def test_layers_that_must_stay_are_left_and_say_why():
    pairs, left = names_of("kept")
    assert pairs == {}
    assert left["bounded"] == "its output is bounded by 6"
    assert left["summed"] == "'sum' reads it"
    assert "curved" in left and "grouped" in left
    assert left["front"] == "'grouped' reads it"


def skewed(rng, powers=3):
    """Layers whose channels were scaled apart: few bits hold their weights badly."""
    keras.utils.set_random_seed(2)
    x = inputs = keras.Input((16,))
    for number in range(3):
        x = layers.Dense(16, activation="relu", name=f"dense{number}")(x)
    model = keras.Model(inputs, layers.Dense(5, name="last")(x))
    for front, behind in zip(model.layers[1:], model.layers[2:], strict=False):
        factors = 2.0 ** rng.uniform(-powers, powers, 16)
        front.set_weights([w * factors for w in front.get_weights()])
        behind.kernel.assign(behind.kernel / factors[:, None])
    return model


@pytest.mark.parametrize("name", NAMES)
def test_scaling_makes_up_for_channels_that_are_far_apart(name, rng):
    model = skewed(rng)
    seen, others = (rng.normal(size=(96, 16)).astype("float32") for _ in range(2))
    q = calibrated(model, seen)
    before = np.mean((model(others) - q(others)) ** 2)
    tfq.optimize(q, seen, name, progress=False)
    assert q.optimization.taken and q.optimization.algorithms == (name,)
    assert np.mean((model(others) - q(others)) ** 2) < 0.5 * before
    np.testing.assert_allclose(float_outputs(q, others)[0], model(others), rtol=1e-3, atol=1e-4)


PLANTED = 50.0


def planted(kind):
    """A network, and the same with a channel 50 times larger where it is made than it is read."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, use_bias=False, name="front")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    if kind == "depthwise":
        x = layers.DepthwiseConv2D(3, name="reader")(x)
    else:
        x = layers.Conv2D(6, 3, name="reader")(x)
    x = layers.Dense(4, name="last")(layers.Flatten()(layers.ReLU()(x)))
    model = keras.Model(inputs, x)
    spoiled = keras.models.clone_model(model)
    spoiled.set_weights(model.get_weights())
    norm, reader = spoiled.get_layer("norm"), spoiled.get_layer("reader")
    factors = np.where(np.arange(8) == 2, PLANTED, 1.0).astype("float32")
    norm.gamma.assign(norm.gamma * factors)
    norm.beta.assign(norm.beta * factors)
    kernel = reader.kernel.numpy()
    reader.kernel.assign(kernel / factors[:, None])
    return model, spoiled


def sqnr(model, q, x):
    y = model.predict(x, verbose=0)
    return 10 * np.log10(np.var(y, axis=0).sum() / np.mean((y - q(x)) ** 2, axis=0).sum())


@pytest.mark.parametrize("kind", ["depthwise", "mixing"])
@pytest.mark.parametrize("name", NAMES)
def test_a_channel_that_is_50_times_larger_costs_nothing_behind_scaling(name, kind, rng):
    model, spoiled = planted(kind)
    seen, others = (rng.normal(size=(64, 8, 8, 4)).astype("float32") for _ in range(2))
    plain, q = calibrated(model, seen), calibrated(spoiled, seen)
    before, possible = sqnr(spoiled, q, others), sqnr(model, plain, others)
    assert before < possible - 3
    tfq.optimize(q, seen, name, progress=False)
    assert q.optimization.taken and sqnr(spoiled, q, others) > possible - 1


@pytest.mark.parametrize("name", NAMES)
def test_channels_that_died_in_training_are_not_made_large(name, rng):
    """Weights of 1e-20 behind a bias ask for factors of 1e10, which would take all of the range."""
    model, _ = planted("mixing")
    front, norm, reader = (model.get_layer(n) for n in ("front", "norm", "reader"))
    dead = np.where(np.arange(8) < 3, 1e-20, 1.0).astype("float32")
    front.kernel.assign(front.kernel * dead)
    norm.beta.assign(np.where(dead < 1, 1e-3, 0.0))
    reader.kernel.assign(reader.kernel * dead[:, None])
    x = rng.normal(size=(64, 8, 8, 4)).astype("float32")
    q = tfq.quantize_model(model, "w4a8")
    (pair, *_), _ = pairs_of(trace(q))
    look(q, [pair], [x])
    largest = pair.magnitudes().max()
    rescale(pair, factors := FACTORS[name](pair))
    assert factors.max() < 10 * factors.min()
    assert pair.magnitudes().max() < 10 * largest


def test_what_is_read_is_scaled_with_its_channels(rng):
    q = tfq.quantize_model(skewed(rng), "w4a8")
    pairs, _ = pairs_of(trace(q))
    x = rng.normal(size=(64, 16)).astype("float32")
    look(q, pairs, [x])
    for pair in pairs:
        rescale(pair, FACTORS["any"](pair))
    scaled = [pair.seen for pair in pairs]
    look(q, pairs, [x])
    for before, pair in zip(scaled, pairs, strict=True):
        for reader, seen in pair.seen.items():
            np.testing.assert_allclose(before[reader], seen, rtol=1e-4, atol=1e-5 * seen.max())


@pytest.mark.parametrize("scheme", ["w4", "w4_g32", "w4a8"])
def test_integers_are_chosen_behind_scaling(scheme, rng):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    x = layers.Dense(32, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(5, name="last")(x))
    x = (rng.normal(size=(96, 8)) @ rng.normal(size=(8, 64))).astype("float32")
    q = tfq.quantize_model(model, scheme)
    q = tfq.calibrate(q, x, progress=False) if scheme == "w4a8" else q
    tfq.optimize(q, x, ["equalize", "gptq"], progress=False)
    assert q.optimization.algorithms == ("equalize", "gptq") and q.optimization.taken
    with pytest.raises(ValueError, match="'hidden' has integers already"):
        tfq.optimize(q, x, "equalize", progress=False)


def test_equalized_ranges_are_the_same_on_both_sides(rng):
    """Of weights that have one step for a layer, as in the paper."""
    made, read = rng.uniform(1, 9, (5, 8)), rng.uniform(1, 9, (8, 3))
    pair = types.SimpleNamespace(
        made=lambda: made, read=lambda: read, by_channel=False, made_by_channel=False
    )
    factors = equalize(pair)
    ratio = (made / factors).max(axis=0) / (read * factors[:, None]).max(axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_ranges_are_equalized_where_channels_share_a_step(rng):
    """Channels with steps of their own where they are made share one where they are read."""
    x = rng.normal(size=(64, 8, 8, 4)).astype("float32")
    q = tfq.quantize_model(planted("depthwise")[1], "w4a8")
    pairs, _ = pairs_of(trace(q))
    look(q, pairs, [x])
    front, reader = pairs
    rescale(front, equalize(front))
    largest = front.magnitudes().max(axis=0)
    np.testing.assert_allclose(largest, largest[0], rtol=1e-5)
    rescale(reader, equalize(reader))
    read = np.abs(reader.read()).max(axis=1)
    np.testing.assert_allclose(read, read[0], rtol=1e-5)


def test_smoothing_shares_ranges_by_its_strength(rng):
    q = tfq.quantize_model(skewed(rng), "w4a8")
    pairs, _ = pairs_of(trace(q))
    look(q, pairs, [rng.normal(size=(64, 16)).astype("float32")])
    pair = pairs[0]
    x, w = pair.magnitudes().max(axis=0), np.abs(pair.read()).max(axis=1)
    known = carrying(x, w)
    same = lambda v: np.testing.assert_allclose(v[known], v[known][0], rtol=1e-5)  # noqa: E731
    even = smooth(pair, 0.5)
    same(x / even / (w * even))
    same(x / smooth(pair, 1.0))
    same(w * smooth(pair, 0.0))
    np.testing.assert_allclose(even[~known], even[known].min())


def test_what_does_not_serve_is_taken_back(rng, monkeypatch, caplog):
    x = rng.normal(size=(64, 16)).astype("float32")
    q = calibrated(skewed(rng, powers=0), x)
    before, expected, correction = [v.numpy() for v in q.variables], q(x), q.correction
    monkeypatch.setattr(
        SmoothQuant, "factors", lambda self, pair: 10.0 ** np.arange(pair.channels)[::-1]
    )
    tfq.optimize(q, x, "smoothquant", progress=False)
    assert not q.optimization.taken and q.correction is correction
    for variable, value in zip(q.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    np.testing.assert_array_equal(q(x), expected)
    assert "came no closer to the float model's by smoothquant" in caplog.text


def test_an_interrupted_scaling_leaves_the_model_as_it_was(rng, monkeypatch):
    x = rng.normal(size=(64, 16)).astype("float32")
    q = calibrated(skewed(rng), x)
    before, scaled = [v.numpy() for v in q.variables], []

    def interrupted(self, pair):
        if scaled:
            raise KeyboardInterrupt
        scaled.append(pair)
        return np.full(pair.channels, 3.0)

    monkeypatch.setattr(SmoothQuant, "factors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tfq.optimize(q, x, "smoothquant", progress=False)
    for variable, value in zip(q.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_nothing_to_scale_says_why(name, rng):
    model = made("kept")
    q = calibrated(model, rows(model, rng, 16))
    with pytest.raises(ValueError, match=r"needs a layer .* 'bounded', its output is bounded by 6"):
        tfq.optimize(q, rows(model, rng, 16), name, progress=False)


def test_given_integers_are_not_scaled(rng):
    x = rng.normal(size=(64, 16)).astype("float32")
    q = calibrated(skewed(rng), x)
    tfq.optimize(q, x, GPTQ(), progress=False)
    with pytest.raises(ValueError, match="'dense0' has integers already"):
        tfq.optimize(q, x, "equalize", progress=False)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SmoothQuant, {"strength": 1.5}, "`strength` must lie from 0 to 1. Received: 1.5"),
        (AWQ, {"grid": 0}, "`grid` must be a positive integer. Received: 0"),
    ],
)
def test_options_must_make_sense(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_a_dead_channel_gets_the_least_factor_of_the_others():
    found = settled(np.array([7.0, 4.0, 1.0]), np.array([False, True, True]))
    np.testing.assert_allclose(found, [0.5, 2, 0.5])
    np.testing.assert_array_equal(settled(np.array([3.0]), np.array([False])), [1])


def test_dust_carries_nothing():
    sizes = np.array([1.0, 2e-3, 5e-4, 0.0, np.inf, np.nan])
    np.testing.assert_array_equal(carrying(sizes), [True, True, False, False, False, False])
    np.testing.assert_array_equal(carrying(np.zeros(2)), [False, False])
