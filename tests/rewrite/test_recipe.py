"""Recipes: which layers a rule selects, and what is written of them."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfquant as tfq
from tfquant.registry.recipe import Row


def nested():
    x = keras.Input((6,))
    y = layers.Dense(6, name="dense")(layers.Dense(6, name="block_3")(x))
    inner = keras.Model(x, y, name="block")
    x = keras.Input((6,))
    y = layers.ReLU(name="relu")(inner(layers.Dense(6, name="stem")(x)))
    return keras.Model(x, layers.Dense(2, name="head")(y), name="net")


def names_of(recipe, model=None):
    """Dict from the name of a layer to that of its scheme, `"float"` for none."""
    rows = recipe.rows(model or nested())
    return {x.name: row.scheme.name if row.scheme else "float" for x, row in rows.items()}


def selected(selector):
    found = names_of(tfq.Recipe("w8a8").where(selector, "w4a8"))
    return {name for name, scheme in found.items() if scheme == "w4a8"}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("head", {"head"}),
        ("block/dense", {"dense"}),
        (
            "block",
            {"block", "block_3", "dense"},
        ),  # What is in it as well; not "block_3" by a match.
        ("block/.*", {"block_3", "dense"}),
        ("block_[3-5]", {"block_3"}),
        ("(stem|head)", {"stem", "head"}),
        ("/head", {"head"}),
        (layers.ReLU, {"relu"}),
        (layers.Dense, {"stem", "block_3", "dense", "head"}),
        (lambda layer: layer.name.startswith("h"), {"head"}),
    ],
    ids=range(10),
)
def test_a_selector_selects(selector, expected):
    assert selected(selector) == expected


def test_a_regular_expression_matches_the_whole_name():
    with pytest.raises(ValueError, match=r"'net' does not have\. Received: 'hea'\. .*'head'"):
        selected("hea")


@pytest.mark.parametrize("selector", ["haed", layers.Conv3D, lambda layer: False])
def test_a_selector_of_nothing_is_an_error(selector):
    recipe = tfq.Recipe("w8a8").where(selector, "w4a8")
    with pytest.raises(ValueError, match=r"does not have\. Received: .*Did you mean one of"):
        tfq.quantize_model(nested(), recipe)


def test_the_first_match_wins():
    recipe = tfq.Recipe("w8a8").where("head", "w8a16").where(layers.Dense, "w4a8").skip("head")
    assert names_of(recipe)["head"] == "w8a16"
    assert names_of(tfq.Recipe("w8a8").skip("head").where("head", "w4a8"))["head"] == "float"


def test_recipes_are_frozen():
    recipe = tfq.Recipe("w8a8")
    other = recipe.where("head", "w4a8")
    assert recipe.rules == () and len(other.rules) == 1
    with pytest.raises(AttributeError):
        recipe.scheme = None


def test_settings_change_the_scheme_of_a_row():
    recipe = tfq.Recipe("w8a8").where("head", weight_bits=4, weight_quantizer="learned_step")
    rows = {x.name: row for x, row in recipe.rows(nested()).items()}
    assert rows["head"].scheme.weight_bits == 4 and rows["stem"].scheme.weight_bits == 8
    same = tfq.Recipe("w8a8").where("head", {"weight_bits": 4, "weight_quantizer": "learned_step"})
    assert same == recipe
    quantized = tfq.quantize_model(nested(), recipe)
    wrapper = next(x for x in quantized.layers if getattr(x, "layer", x).name == "head")
    ((_, quantizer),) = wrapper.weight_quantizers
    assert type(quantizer).__name__ == "LearnedStep" and quantizer.spec.num_bits == 4


def test_an_algorithm_is_carried_along():
    recipe = tfq.Recipe("w8a8", algorithm="adaround").where("head", "w4a8", algorithm="gptq")
    rows = {x.name: row.algorithm for x, row in recipe.rows(nested()).items()}
    assert rows["stem"] == "adaround" and rows["head"] == "gptq"
    assert tfq.Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfq.Recipe("int8"), "`scheme` must be one of"),
        (lambda: tfq.Recipe().where("a", "w5"), "`scheme` must be one of.*'w5'"),
        (lambda: tfq.Recipe().where("a", bits=4), "A rule has the keys.*Received: 'bits'"),
        (lambda: tfq.Recipe().where("a", "float", weight_bits=4), "A float layer has no settings"),
        (lambda: tfq.Recipe().where("a(", "w4a8"), "regular expression. Received: 'a\\('"),
        (lambda: tfq.Recipe().where(3, "w4a8"), "Received: 3"),
        (lambda: tfq.Recipe(algorithm=3), "`algorithm` must be a name"),
    ],
)
def test_what_is_no_rule_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


class Unregistered(layers.Layer):
    pass


FULL = (
    tfq.Recipe("w8a8")
    .where("block/.*", "w4a8")
    .where(layers.ReLU, "w8a16", activation_quantizer="static")
    .skip("head")
)


def test_json_brings_a_recipe_back():
    assert tfq.Recipe.from_json(FULL.to_json()) == FULL
    assert json.loads(FULL.to_json())["version"] == 1


@pytest.mark.parametrize("name", ["r.json", "r.yaml", "r.yml"])
def test_a_file_brings_a_recipe_back(name, tmp_path):
    if not name.endswith("json"):
        pytest.importorskip("yaml", reason="PyYAML is not installed")
    FULL.save(tmp_path / name)
    assert tfq.Recipe.load(tmp_path / name) == FULL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 1 is expected. Received: version 2"),
        ({"rule": []}, "A recipe has the keys .*Received: 'rule'"),
        ({"rules": [{"where": "a", "scheme": "w8", "bits": 3}]}, "A rule has .*Received: 'bits'"),
        ({"rules": [{"where": "a"}]}, "A rule needs `where` and `scheme`"),
        ({"rules": [{"where": {"type": "Dens"}, "scheme": "w8"}]}, "class.*Received: 'Dens'"),
        ({"scheme": {"name": "x", "weights": 3}}, "A scheme has the keys.*Received: 'weights'"),
    ],
)
def test_what_a_recipe_does_not_know_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        tfq.Recipe.from_json(json.dumps({"version": 1, **change}))


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_text_that_is_no_recipe_is_refused(text):
    with pytest.raises(ValueError, match=r"A recipe .* is expected\. Received"):
        tfq.Recipe.from_json(text)


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.json, \.yaml or \.yml is expected"):
        FULL.save(tmp_path / "recipe.txt")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"A recipe is expected\. Received"):
        tfq.Recipe.load(tmp_path / "recipe.json")


def picky(layer):
    return layer.name == "head"


@pytest.mark.parametrize("selector", [picky, Unregistered])
def test_what_cannot_be_read_again_is_not_written(selector):
    with pytest.raises(ValueError, match=f"Received: '{selector.__name__}', a"):
        tfq.Recipe().where(selector, "w4a8").to_json()


def test_a_quantized_model_knows_its_recipe_when_it_is_loaded(tmp_path, rng):
    """A function has become the names of what it selected."""
    recipe = FULL.where(lambda layer: layer.name == "stem", "w4a8")
    model, data = nested(), rng.normal(size=(8, 6)).astype(np.float32)
    quantized = tfq.calibrate(tfq.quantize_model(model, recipe), data, progress=False)
    quantized.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    assert loaded.recipe == FULL.where("stem", "w4a8")
    np.testing.assert_array_equal(loaded(data), quantized(data))
    again = tfq.quantize_model(model, loaded.recipe)
    tfq.calibrate(again, data, progress=False)
    np.testing.assert_array_equal(again(data), quantized(data))


def test_marks_by_hand_amount_to_a_recipe(rng):
    x = keras.Input((6,))
    y = tfq.quantize_annotate_layer(layers.Dense(5, name="marked"))(x)
    model = keras.Model(x, layers.Dense(3, name="plain")(y))
    recipe = tfq.quantize_apply(model, "w4a8").recipe
    assert recipe.base == Row(None, edges=True)
    assert names_of(recipe, model) == {"annotate_marked": "w4a8", "plain": "float"}
    bare = keras.models.clone_model(model, clone_function=lambda x: getattr(x, "layer", x))
    assert names_of(recipe, bare) == {"marked": "w4a8", "plain": "float"}


def test_what_a_layer_is_taken_apart_into_has_its_row():
    x = keras.Input((5, 4))
    y = layers.LSTM(3, name="rnn")(x)
    model = keras.Model(x, layers.Dense(2, name="head")(y))
    quantized = tfq.quantize_model(model, tfq.Recipe("w8a8").skip("rnn"))
    assert [x.name for x in quantized.layers if type(x) is layers.LSTM] == ["rnn"]
    quantized = tfq.quantize_model(model, tfq.Recipe("float").where("rnn", "w8a8"))
    wrapped = [x for x in quantized.layers if isinstance(x, tfq.QuantizeWrapper)]
    assert wrapped and all(x.layer.name.startswith("rnn") for x in wrapped)
    assert type(quantized.get_layer("head")) is layers.Dense
