"""`Board`: what it computes of a mixture is what the model of its recipe computes."""

import numpy as np
import pytest
from mixtures import decibels, images, logits, network

import tfquant as tfq
from tfquant.board import Board, Stage, check_choices


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixture_on_the_board_is_the_model_of_its_recipe(rng, seed):
    model, x = logits(network(seed)), images(rng)
    board = Board(model, [x], check_choices(["w8a8", "w4a8", "w8a16"]), effort="fast")
    stage, draw = Stage(board, [x]), np.random.default_rng(seed)
    weighted = {name: unit for name, unit in board.units.items() if unit.has_weights}
    wholes = [{name: u.options[c] for name, u in weighted.items()} for c in ("w8a8", "w4a8")]
    mixtures = [
        {name: draw.choice(sorted(set(u.options.values()))) for name, u in weighted.items()}
        for _ in range(4)
    ]
    for chosen in map(board.follow, wholes + mixtures):
        q = tfq.quantize_model(model, board.recipe(chosen))
        if board.recipe(chosen).static:
            tfq.calibrate(q, x, observer="percentile", bias_correction=False, progress=False)
        head = stage.outputs(chosen)[0][0]
        ours, theirs = (decibels(np.array(model(x)), np.array(y)) for y in (head, q(x)))
        # Ranges differ: the model's are those of quantized weights, the board's of float ones.
        assert ours == pytest.approx(theirs, abs=1.5)
