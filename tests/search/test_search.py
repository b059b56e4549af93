"""`search`: the mixture that it finds keeps the budget, and few others are as good."""

import itertools
import json
import os

import keras
import numpy as np
import pytest
from keras import layers
from mixtures import decibels, images, logits, network

import tfquant as tfq
from tfquant.board import Board, Stage, check_choices
from tfquant.search import costs as counted
from tfquant.search.costs import Costs
from tfquant.search.mixtures import Mixtures
from tfquant.search.search import LEVELS
from tfquant.sensitivity import Study, study


def small(seed=0):
    """Four layers with weights, each of another size."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6, 6, 3))
    for name, channels in (("one", 8), ("two", 16), ("three", 12)):
        x = layers.Conv2D(channels, 3, padding="same", activation="relu", name=name)(x)
    return keras.Model(inputs, layers.Dense(5, name="four")(layers.Flatten()(x)))


def squares(rng, count=64):
    return rng.normal(size=(count, 6, 6, 3)).astype("float32")


def found_in(model, x, budget, choices=("w8a8", "w4a8"), **settings):
    settings = {"effort": "fast", "evaluations": 24, **settings}
    return tfq.search(model, x, budget, list(choices), progress=False, **settings)


@pytest.fixture(scope="module")
def halfway():
    """A search at the bytes half way between w4a8 and w8a8, and what it was given."""
    rng = np.random.default_rng(0)
    model, x = small(), squares(rng)
    sizes = [
        bytes_of(tfq.quantize(model, x, s, effort="fast", progress=False)) for s in ("w4a8", "w8a8")
    ]
    budget = tfq.Budget(bytes=sum(sizes) // 2)
    return model, x, budget, sizes, found_in(model, x, budget)


def bytes_of(q):
    return counted.file_bytes(q)


def test_the_file_keeps_the_budget_and_has_the_bytes_it_says(halfway, tmp_path):
    *_, budget, sizes, found = halfway
    report = tfq.to_tflite(found.model, tmp_path / "model.tflite", progress=False)
    assert os.path.getsize(tmp_path / "model.tflite") == found.bytes <= budget.bytes
    assert sizes[0] < found.bytes < sizes[1]
    bits = {row.name: row.weight_bits for row in report.layers if row.weight_bits}
    assert bits == {name: int(choice[1]) for name, choice in found.choices.items()}
    assert {4, 8} == set(bits.values())


def test_it_is_better_than_all_mixtures_of_the_same_budget_but_few(halfway):
    model, x, budget, _, found = halfway
    board = Board(model, [x], check_choices(["w8a8", "w4a8"]), effort="fast")
    costs, stage = Costs(board), Stage(board, [x])
    ratios = []
    for bits in itertools.product(["w8a8", "w4a8"], repeat=4):
        full = board.follow(dict(zip(costs.weighted, bits, strict=True)))
        if costs.bytes(full) <= budget.bytes:
            ratios.append(stage.sqnr(full))
    assert found.sqnr == pytest.approx(max(ratios), abs=0.02)  # What is no gain is not taken.


def test_the_program_is_as_good_as_all_mixtures_by_the_same_figures(rng):
    choices = check_choices(["w8a8", "w4a8", "w8a16"])
    one = Study(logits(network()), images(rng), choices, effort="fast")
    costs = Costs(one.board)
    mixtures = Mixtures(one, costs, list(choices))
    all_mixtures = list(itertools.product(*(item.noise for item in mixtures.items)))
    noise = lambda x: sum(i.noise[c] for i, c in zip(mixtures.items, x, strict=True))  # noqa: E731
    low, high = mixtures.smallest_bytes(), mixtures.bytes(mixtures.largest())
    for share in (0.0, 0.3, 0.6, 1.0):
        bound = low + share * (high - low)
        # What lies between widths is no matter of single layers.
        weights = lambda x: sum(i.costs[c][0] for i, c in zip(mixtures.items, x, strict=True))  # noqa: E731
        kept = [x for x in all_mixtures if weights(x) + costs.start_bytes <= bound]
        solved = mixtures.solve([bound, np.inf])
        assert mixtures.bytes(solved) <= bound
        if mixtures.bytes(min(kept, key=noise)) <= bound:
            assert noise(solved) == pytest.approx(min(map(noise, kept)), rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_bytes_are_those_of_the_file_but_few(rng, seed):
    model, x = network(seed), images(rng)
    board = Board(model, [x], check_choices(["w8a8", "w4a8", "w8a16", "float"]), effort="fast")
    costs, draw = Costs(board), np.random.default_rng(seed)
    for number in range(4):
        widths = ["w8a8", "w4a8"] if number < 2 else ["w8a8", "w8a16", "float"]
        chosen = {name: draw.choice(widths) for name in costs.weighted}
        full = board.follow({n: board.units[n].options[c] for n, c in chosen.items()})
        q = tfq.quantize(model, x, board.recipe(full), effort="fast", progress=False)
        actual, reckoned = bytes_of(q), costs.bytes(full)
        if number < 2:  # One width of activations: to the alignment of a buffer for each layer.
            assert abs(actual - reckoned) <= 16 * len(chosen)
        assert abs(actual - reckoned) <= 0.12 * actual  # Casts take more or less.


def test_bit_operations_are_products_times_bits():
    model, x = small(), squares(np.random.default_rng(0))
    board = Board(model, [x], check_choices(["w8a8", "w4a8"]), effort="fast")
    costs = Costs(board)
    macs = {"one": 36 * 27 * 8, "two": 36 * 72 * 16, "three": 36 * 144 * 12, "four": 432 * 5}
    assert costs.bops(board.everywhere("w8a8")) == 64 * sum(macs.values())
    assert costs.unit_bops("two", "w4a8") == 32 * macs["two"]


def test_a_budget_of_bit_operations_is_kept(rng):
    model, x = small(), squares(rng)
    macs = 36 * (27 * 8 + 72 * 16 + 144 * 12) + 432 * 5
    found = found_in(model, x, tfq.Budget(bops=48 * macs))
    assert found.bops <= 48 * macs and set(found.choices.values()) == {"w8a8", "w4a8"}


def test_tied_layers_have_one_scheme(halfway):
    model, x, budget, _, _ = halfway
    found = found_in(model, x, budget, ties=[["one", "three"], ["two", "four"]])
    assert found.choices["one"] == found.choices["three"]
    assert found.choices["two"] == found.choices["four"] and found.bytes <= budget.bytes


def test_what_the_device_does_not_multiply_is_not_chosen(rng):
    model, x = network(), images(rng)
    smallest = bytes_of(tfq.quantize(model, x, "w4a8", effort="fast", progress=False))
    # Names that Keras counts up make a file longer by some bytes.
    found = found_in(model, x, tfq.Budget(bytes=smallest + 64))
    assert found.choices["depthwise"] == "w8a8" and found.choices["hidden"] == "w4a8"


def test_the_front_was_measured_and_none_betters_another(halfway):
    model, x, *_, found = halfway
    board = Board(model, [x], check_choices(["w8a8", "w4a8"]), effort="fast")
    stage, costs = Stage(board, [x]), Costs(board)
    assert len(found.front) >= min(LEVELS, 3) and len(found.front) <= len(found.candidates)
    for one in found.front:
        full = board.follow(one.choices)
        assert one.sqnr == pytest.approx(stage.sqnr(full), abs=1e-3)
        assert one.bytes == costs.bytes(full)
        assert not any(
            x.bytes <= one.bytes and x.bops <= one.bops and x.sqnr > one.sqnr
            for x in found.candidates
        )


def test_measuring_neighbours_never_loses(halfway):
    model, x, budget, _, found = halfway
    unrefined = found_in(model, x, budget, evaluations=0)
    assert found.sqnr >= unrefined.sqnr


def test_the_same_search_finds_the_same(halfway):
    model, x, budget, _, found = halfway
    again = found_in(model, x, budget)
    assert again.choices == found.choices and again.candidates == found.candidates


def test_a_search_that_was_interrupted_goes_on(halfway, tmp_path, monkeypatch):
    model, x, budget, _, found = halfway
    count, compute = [], Stage.sqnr

    def interrupted(self, *args):
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt
        return compute(self, *args)

    path = tmp_path / "figures.jsonl"
    monkeypatch.setattr(Stage, "sqnr", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found_in(model, x, budget, cache=path)
    assert len([line for line in path.read_text().splitlines() if "sqnr" in line]) == 5
    monkeypatch.setattr(Stage, "sqnr", compute)
    assert found_in(model, x, budget, cache=path).choices == found.choices


def test_figures_of_other_ties_are_not_taken(halfway, tmp_path):
    model, x, budget, *_ = halfway
    path = tmp_path / "figures.jsonl"
    for ties in ([["one", "two"]], [["one", "three"]], [["two", "four"]]):
        found = found_in(model, x, budget, ties=ties, cache=path)
        again = found_in(model, x, budget, ties=ties)
        assert found.choices == again.choices and found.candidates == again.candidates


def test_a_budget_that_nothing_keeps_names_the_nearest_that_can_be_kept(halfway):
    model, x, _, sizes, _ = halfway
    with pytest.raises(ValueError, match=f"the nearest has about {sizes[0]:,} bytes"):
        found_in(model, x, tfq.Budget(bytes=sizes[0] - 1500))
    assert found_in(model, x, tfq.Budget(bytes=sizes[0])).bytes == sizes[0]
    with pytest.raises(ValueError, match=r"some mixture keeps is expected. Received: 1 bit"):
        found_in(model, x, tfq.Budget(bops=1))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "A budget needs a bound"),
        ({"bytes": 0}, "`bytes` must be a positive number. Received: 0"),
        ({"bytes": "60k"}, "`bytes` must be a positive number. Received: '60k'"),
        ({"bops": float("nan")}, "`bops` must be a positive number"),
        ({"max_drop": -0.1}, "`max_drop` must not be negative"),
        ({"latency": 0.001}, "`latency` is not measured yet"),
    ],
)
def test_budgets_that_mean_nothing_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        tfq.Budget(**fields)


def test_mistakes_are_named_before_the_work(rng, monkeypatch):
    model, x, budget = small(), squares(rng), tfq.Budget(bytes=5000)
    monkeypatch.setattr(study, "Board", None)
    with pytest.raises(TypeError, match=r"must be a tfq\.Budget. Received: 5000"):
        found_in(model, x, 5000)
    with pytest.raises(ValueError, match=r"`validation=\(x, y\)` is needed for max_drop"):
        found_in(model, x, tfq.Budget(max_drop=0.01))
    with pytest.raises(ValueError, match="`evaluations` must be a whole number"):
        found_in(model, x, budget, evaluations=-1)
    with pytest.raises(ValueError, match="`effort` must be one of"):
        found_in(model, x, budget, effort="some")


def test_ties_of_layers_without_a_choice_are_named(rng):
    with pytest.raises(ValueError, match="Received: 'five', which has no weights"):
        found_in(small(), squares(rng), tfq.Budget(bytes=9000), ties=[["one", "five"]])
    with pytest.raises(ValueError, match="Received: 'one', twice"):
        found_in(small(), squares(rng), tfq.Budget(bytes=9000), ties=[["one", "two"], ["one"]])


def test_wide_activations_and_float_are_choices(rng):
    model, x = logits(network()), images(rng)
    size = bytes_of(tfq.quantize(model, x, "w8a8", effort="fast", progress=False))
    choices = ["w8a8", "w8a16", "float"]
    found = found_in(model, x, tfq.Budget(bytes=int(1.6 * size)), choices)
    plain = tfq.quantize(model, x, "w8a8", effort="fast", progress=False)
    y = np.array(model(x))
    assert decibels(y, np.array(found.model(x))) > decibels(y, np.array(plain(x))) + 2
    assert found.bytes <= 1.6 * size


def test_the_report_is_tables_and_a_record(halfway):
    *_, found = halfway
    record, text = json.loads(found.to_json()), str(found)
    assert record["choices"] == found.choices and record["front"] and "model" in record
    assert tfq.Recipe.from_config(record["recipe"]).rules
    assert f"{found.bytes:,} bytes" in text and all(name in text for name in found.choices)
