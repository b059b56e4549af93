"""`autoquantize`: the first of what is tried that holds is taken, and the report tells the way."""

import json
import logging

import numpy as np
import pytest
from test_controlled import accuracy, digits  # noqa: F401
from test_search import bytes_of

import tfquant as tfq
from tfquant.search import auto


def nearness(digits):  # noqa: F811
    """A metric that no quantized model has in full, whose answers are the numbers of rows."""
    model, _, x, _ = digits
    expected = model.predict(x[:300], verbose=0)

    def nearness(y, outputs):
        return -float(np.sqrt(np.mean((outputs - expected[y]) ** 2)))

    return nearness


def found_by(digits, target=None, metric=None, answers=None):  # noqa: F811
    model, train, x, y = digits
    validation = x[:300], y[:300] if answers is None else answers
    return tfq.autoquantize(model, train[:96], validation, metric, target, progress=False)


def size_of(digits, scheme):  # noqa: F811
    model, train, *_ = digits
    return bytes_of(tfq.quantize(model, train[:96], scheme, effort="fast", progress=False))


def test_the_cheapest_that_holds_is_taken(digits):  # noqa: F811
    found = found_by(digits, tfq.Budget(max_drop=0.05))
    assert [(s.scheme, s.effort, s.holds) for s in found.steps] == [("w8a8", "fast", True)]
    model, _, x, y = digits
    assert found.score == pytest.approx(accuracy(found.model, x[:300], y[:300]))
    assert found.float_score == pytest.approx(accuracy(model, x[:300], y[:300]))
    assert found.score >= found.float_score - 0.05 and found.bytes == bytes_of(found.model)


def test_a_score_is_a_target(digits):  # noqa: F811
    _, _, x, y = digits
    float_score = accuracy(digits[0], x[:300], y[:300])
    found = found_by(digits, float_score - 0.03)
    assert found.holds and found.score >= float_score - 0.03
    assert found.target.max_drop == pytest.approx(0.03)


def test_fewer_bytes_go_on_to_four_bits_and_then_to_mixtures(digits):  # noqa: F811
    small, large = size_of(digits, "w4a8"), size_of(digits, "w8a8")
    found = found_by(digits, tfq.Budget(bytes=small, max_drop=0.2))
    tried = [(s.scheme, s.effort) for s in found.steps]
    assert tried[:2] == [("w8a8", "fast"), ("w4a8", "default")]
    assert found.holds and found.bytes <= small
    # A bound that 4 bits throughout keeps, and a drop that they do not.
    budget = tfq.Budget(bytes=(small + large) // 2, max_drop=1e-6)
    found = found_by(digits, budget, nearness(digits), np.arange(300))
    assert [s.scheme for s in found.steps] == ["w8a8", "w4a8", "w4a8", "w8a8 | w4a8"]
    assert found.bytes <= budget.bytes and not found.holds
    assert found.score == max(s.score for s in found.steps[1:])
    assert "too many" in found.steps[0].why and "drops" in found.steps[1].why


def test_a_metric_that_eight_bits_do_not_keep_goes_on_to_wider_ones(digits, caplog):  # noqa: F811
    caplog.set_level(logging.WARNING)
    model, train, x, _ = digits
    near, rows = nearness(digits), np.arange(300)
    plain = tfq.quantize(model, train[:96], "w8a8", progress=False)
    drop = -near(rows, plain.predict(x[:300], verbose=0)) / 3
    found = found_by(digits, tfq.Budget(max_drop=drop), near, rows)
    tried = [s.scheme for s in found.steps]
    assert tried == ["w8a8", "w8a8", "w8a8", "w8a8 | w8a16 | float"]
    assert found.holds and found.score >= found.float_score - drop
    assert [s.effort for s in found.steps[:3]] == ["fast", "default", "best"]


def test_what_nothing_keeps_is_said_and_the_best_is_returned(digits, caplog):  # noqa: F811
    caplog.set_level(logging.WARNING)
    budget = tfq.Budget(bytes=size_of(digits, "w4a8"), max_drop=1e-9)
    found = found_by(digits, budget, nearness(digits), np.arange(300))
    assert not found.holds and "Nothing that was tried is within" in caplog.text
    assert "not within" in str(found) and found.bytes <= budget.bytes


def test_the_report_tells_the_way(digits):  # noqa: F811
    found = found_by(digits, tfq.Budget(max_drop=0.05))
    text, record = str(found), json.loads(found.to_json())
    assert "holds" in text and "300 rows" in text
    assert record["steps"][0]["scheme"] == "w8a8" and record["recipe"]["scheme"] == "w8a8"


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (2.0, ValueError, "`target` must be a score that the float model has"),
        (float("nan"), ValueError, "`target` must be a score that the float model has"),
        ("high", TypeError, "`target` must be a number, a tfq.Budget or None. Received: 'high'"),
        (tfq.Budget(bops=1e6), ValueError, "tfq.search takes bit operations"),
    ],
)
def test_targets_that_mean_nothing_are_named_before_the_work(
    digits,  # noqa: F811
    monkeypatch,
    target,
    error,
    words,
):
    monkeypatch.setattr(auto, "quantize", None)
    with pytest.raises(error, match=words):
        found_by(digits, target)


def test_bytes_that_nothing_keeps_name_the_smallest(digits):  # noqa: F811
    with pytest.raises(
        ValueError, match=f"the smallest file has {size_of(digits, 'w4a8'):,} bytes"
    ):
        found_by(digits, tfq.Budget(bytes=500, max_drop=0.5))


def test_a_metric_that_fails_does_so_before_the_work(digits, monkeypatch):  # noqa: F811
    monkeypatch.setattr(auto, "quantize", None)
    with pytest.raises(ValueError, match=r"finite number\. Received: nan"):
        found_by(digits, metric=lambda y, outputs: float("nan"))
