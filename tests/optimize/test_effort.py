"""`quantize`: one call, and what an effort buys."""

import logging

import numpy as np
import pytest
from test_optimize import calibrated, images, integers, network, noise

import tfquant as tfq
import tfquant_cli
from tfquant.optimize import EFFORTS


def test_the_default_is_what_calibration_does(rng):
    model, x = network(), images(rng)
    q = tfq.quantize(model, x, "w4a8", progress=False)
    np.testing.assert_array_equal(q(x), calibrated(model, x)(x))
    assert q.correction.sqnr


def test_the_fast_one_weighs_nothing(rng):
    q = tfq.quantize(network(), images(rng), "w4a8", effort="fast", progress=False)
    assert q.correction.method == "none" and set(q.correction.sqnr) == {"none"}


def test_the_best_one_comes_closest_on_rows_that_were_not_seen(rng):
    model, seen, others = network(), images(rng, 128), images(rng, 64)
    found = {
        effort: noise(
            model, tfq.quantize(model, seen, "w4a8", effort=effort, progress=False), others
        )
        for effort in EFFORTS
    }
    assert found["best"] < 0.8 * min(found["fast"], found["default"])


def test_the_best_one_reads_a_generator_once(rng):
    model, x = network(), images(rng)
    parts = iter([x[:32], x[32:]])
    q = tfq.quantize(model, parts, "w4a8", effort="best", progress=False)
    expected = tfq.quantize(model, x, "w4a8", effort="best", progress=False)
    for name, found in integers(q).items():
        np.testing.assert_array_equal(found, integers(expected)[name])


@pytest.mark.parametrize("effort", ["default", "best"])
def test_the_algorithms_of_a_recipe_are_the_only_ones(effort, rng):
    model, x = network(), images(rng)
    recipe = tfq.Recipe("w4a8").where("pointwise", "w4a8", algorithm="gptq")
    q = tfq.quantize(model, x, recipe, effort=effort, progress=False)
    plain = integers(calibrated(model, x))
    changed = {name for name, found in integers(q).items() if (found != plain[name]).any()}
    assert changed == {"pointwise"}


def test_weights_alone_need_no_data_but_for_the_best(rng, caplog):
    caplog.set_level(logging.WARNING)
    model, x = network(), images(rng)
    plain = tfq.quantize(model, scheme="w4")
    with pytest.raises(ValueError, match=r"for effort='best'\. Received: None"):
        tfq.quantize(model, scheme="w4", effort="best")
    best = tfq.quantize(model, x, "w4", effort="best", progress=False)
    assert noise(model, best, x) < noise(model, plain, x)


def test_bad_arguments_are_named(rng):
    with pytest.raises(ValueError, match=r"'fast', 'default', 'best'\. Received: 'quick'"):
        tfq.quantize(network(), images(rng), effort="quick")
    with pytest.raises(ValueError, match=r"for grids of activations\. Received: None"):
        tfq.quantize(network())


def test_the_command_knows_the_same_efforts():
    assert tuple(EFFORTS) == tfquant_cli.EFFORTS
