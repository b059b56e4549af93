"""`sensitivity`: which layer hurts is what quantizing it, and nothing else, does to the outputs."""

import json
import math
import xml.etree.ElementTree as ElementTree

import keras
import numpy as np
import pytest
from keras import layers
from mixtures import decibels, images, logits, network

import tfquant as tfq
from tfquant.board import Stage
from tfquant.sensitivity import study


def measured(model, x, **settings):
    return tfq.sensitivity(model, x, progress=False, **{"gradients": False, **settings})


def test_a_layer_alone_is_that_layer_with_rounded_weights(rng):
    model, x = logits(network()), images(rng)
    found = measured(model, x, choices=["w4"], effort="fast", advice=False)
    expected = model(x)
    for row in found.layers:
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        kernel = copy.get_layer(row.name).weights[0]
        q = tfq.quantize_model(model, tfq.Recipe("float").where(row.name, "w4"))
        (wrapper,) = [v for v in q.layers if isinstance(v, tfq.QuantizeWrapper)]
        ((variable, quantizer),) = wrapper.weight_quantizers
        kernel.assign(quantizer.call(variable.value))
        alone = decibels(np.array(expected), np.array(copy(x)))
        assert row.sqnr["w4"] == pytest.approx(alone, abs=0.01)  # float32 sums
    assert {row.name for row in found.layers} == {
        *("first", "depthwise", "pointwise", "hidden", "last")
    }


def test_all_but_one_gains_most_by_the_layer_with_the_most_noise(rng):
    model, x = network(), images(rng)
    one = measured(model, x, choices=["w4a8"], advice=False)
    but = measured(model, x, choices=["w4a8"], advice=False, mode="all_but_one")
    assert one.layers[0].name == but.layers[0].name
    assert but.layers[0].sqnr["w4a8"] == max(row.sqnr["w4a8"] for row in but.layers)
    assert but.layers[0].sqnr["w4a8"] > but.whole["w4a8"]


def test_layers_come_worst_first_and_shares_add_up(rng):
    found = measured(network(), images(rng), choices=["w8a8", "w4a8"], advice=False)
    ratios = [row.sqnr["w4a8"] for row in found.layers]
    assert ratios == sorted(ratios)
    for choice in ("w8a8", "w4a8"):
        assert sum(row.noise_share[choice] for row in found.layers) == pytest.approx(1)
    assert found.noisiest == "w4a8"


def test_a_metric_of_ones_own_ranks(rng):
    model, x = network(), images(rng)
    y = np.array(model(x))
    nearness = lambda y, outputs: -float(np.mean((y - outputs) ** 2))  # noqa: E731
    found = measured(model, x, choices=["w4a8"], validation=(x, y), metric=nearness, advice=False)
    scores = [row.score["w4a8"] for row in found.layers]
    assert scores == sorted(scores) and abs(found.float_score) < 1e-12
    assert found.whole_score["w4a8"] < scores[-1]


def test_what_the_device_has_no_bits_for_is_the_same_as_what_it_has(rng):
    found = measured(network(), images(rng), advice=False)
    rows = {row.name: row for row in found.layers}
    assert rows["depthwise"].same_as == {"w4a8": "w8a8"} and not rows["pointwise"].same_as
    assert rows["depthwise"].sqnr["w4a8"] == rows["depthwise"].sqnr["w8a8"]


def test_gradients_predict_the_noise_of_a_linear_layer(rng):
    inputs = keras.Input((64,))
    model = keras.Model(inputs, layers.Dense(32, use_bias=False, name="only")(inputs))
    x = rng.normal(size=(256, 64)).astype("float32")
    found = measured(model, x, choices=["w4"], gradients=True, advice=False)
    (row,) = found.layers
    # Independent inputs: the diagonal is all there is, but for chance of few rows.
    assert row.predicted["w4"] == pytest.approx(row.sqnr["w4"], abs=0.7)
    kernel = np.array(model.layers[-1].kernel)
    assert row.trace == pytest.approx(kernel.size / np.sum(kernel**2, axis=0).mean() / 32, rel=0.3)


def test_gradients_rank_layers_as_measurement_does(rng):
    model, x = logits(network()), images(rng)
    found = measured(model, x, choices=["w4"], gradients=True, advice=False, effort="fast")
    pairs = [(row.predicted["w4"], row.sqnr["w4"]) for row in found.layers]
    assert np.corrcoef(*zip(*pairs, strict=True))[0, 1] > 0.8


def test_the_model_is_left_alone(rng):
    model, x = network(), images(rng)
    before, y = [np.array(v) for v in model.get_weights()], np.array(model(x))
    measured(model, x, gradients=True, effort="best")
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(y, model(x))


def test_what_was_interrupted_goes_on_where_it_was(rng, tmp_path, monkeypatch):
    model, x, path = network(), images(rng), tmp_path / "figures"
    expected = measured(model, x)
    computed, compute = [], Stage.sqnr

    def interrupted(self, chosen, parts=None):
        if len(computed) == 7:
            raise KeyboardInterrupt
        computed.append(chosen)
        return compute(self, chosen, parts)

    monkeypatch.setattr(Stage, "sqnr", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(model, x, cache=path)
    monkeypatch.setattr(Stage, "sqnr", compute)
    with open(path, "a") as file:  # As a process that was killed leaves it.
        file.write('{"key": "12')
    noted = len(path.read_text().splitlines())
    found = measured(model, x, cache=path)
    assert str(found) == str(expected)
    lines = path.read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines if line.endswith("}")]
    assert len(names) == len(set(names)) and len(lines) > noted
    monkeypatch.setattr(study, "Board", None)  # Nothing is built for what is known.
    assert str(measured(model, x, cache=path)) == str(expected)


def test_figures_of_another_model_or_of_other_rows_are_not_taken(rng, tmp_path):
    model, x, path = network(), images(rng), tmp_path / "figures"
    measured(model, x, cache=path, advice=False)
    other = network(1)
    for one, rows in ((other, x), (model, x + 1)):
        found = measured(one, rows, cache=path, advice=False)
        assert str(found) == str(measured(one, rows, advice=False))


def test_figures_of_another_metric_are_not_taken(rng, tmp_path):
    model, x, path = network(), images(rng), tmp_path / "figures"
    y = np.array(model(x))

    def found(power, **settings):
        metric = lambda y, outputs: -float(np.mean(np.abs(y - outputs) ** power))  # noqa: E731
        settings = {"validation": (x, y), "metric": metric, "advice": False, **settings}
        return measured(model, x, choices=["w4a8"], **settings)

    found(1, cache=path)
    assert str(found(2, cache=path)) == str(found(2))


def test_a_file_of_something_else_is_no_cache(rng, tmp_path):
    path = tmp_path / "figures"
    path.write_text("one\ntwo\nthree\n")
    with pytest.raises(ValueError, match="`cache` must name a file that tfquant wrote"):
        measured(network(), images(rng), cache=path)
    assert path.read_text() == "one\ntwo\nthree\n"


def raising(y, outputs):
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"mode": "two"}, ValueError, "`mode` must be 'one' or 'all_but_one'. Received: 'two'"),
        ({"effort": "much"}, ValueError, "`effort` must be one of .* Received: 'much'"),
        ({"choices": "w8a8"}, ValueError, "`choices` must be a list"),
        ({"choices": ["float"]}, ValueError, "must have a scheme beside 'float'"),
        ({"choices": ["w8a8", "w8a8"]}, ValueError, "must differ. Received: 'w8a8' twice"),
        ({"choices": ["w8a8_dynamic"]}, ValueError, "quantizes them when the model runs"),
        ({"choices": ["w9a9"]}, ValueError, "`scheme` must be one of"),
        ({"metric": len}, ValueError, r"`validation=\(x, y\)` is needed"),
        ({"validation": 3}, ValueError, r"a pair of inputs and answers"),
        ({"metric": 3, "answers": 64}, TypeError, "`metric` must be a function"),
        ({"metric": raising, "answers": 64}, ValueError, "raises RuntimeError: broken"),
        ({"metric": lambda y, z: math.nan, "answers": 64}, ValueError, "finite number"),
        ({"metric": lambda y, z: "x", "answers": 64}, ValueError, "must return a number"),
        ({"answers": 63}, ValueError, "64 rows, 63 answers"),
    ],
)
def test_what_cannot_be_measured_is_named_before_the_work(rng, monkeypatch, settings, error, words):
    x, settings = images(rng), dict(settings)
    if "answers" in settings:
        settings["validation"] = x, np.zeros(settings.pop("answers"), int)
    monkeypatch.setattr(study, "Board", None)
    with pytest.raises(error, match=words):
        measured(network(), x, **settings)


def test_the_report_is_a_table_a_record_and_a_plot(rng, tmp_path):
    x = images(rng)
    found = measured(network(), x, validation=(x, np.zeros(64, int)), gradients=True)
    text, record = str(found), json.loads(found.to_json())
    assert all(row.name in text for row in found.layers)
    assert [row["name"] for row in record["layers"]] == [row.name for row in found.layers]
    found.plot(tmp_path / "plot.svg")
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    bars = [x for x in root if x.get("height") and x.get("x") == "268"]
    assert len(bars) == sum(len(row.sqnr) for row in found.layers)
    with pytest.raises(ValueError, match=r"named \.svg is expected"):
        found.plot(tmp_path / "plot.png")


def test_a_model_of_fixed_batches_nested_models_and_attention(rng):
    inner = keras.Sequential([keras.Input((6, 8)), layers.Dense(8, activation="relu", name="in")])
    inputs = keras.Input(batch_shape=(4, 6, 8))
    y = layers.MultiHeadAttention(2, 4, name="attention")(inner(inputs), inner(inputs))
    y = layers.LayerNormalization(name="norm")(y)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(y)))
    x = rng.normal(size=(32, 6, 8)).astype("float32")
    found = measured(model, x, choices=["w8a8", "w4a8"], gradients=True)
    weighted = {row.name for row in found.layers if row.parameters}
    assert weighted == {f"{inner.name}/in", "attention", "norm", "head"}
    assert all(np.isfinite(list(row.sqnr.values())).all() for row in found.layers)
