"""What gradients say of layers: how much the outputs make of a change of weights."""

import numpy as np
import tensorflow as tf
from keras import ops

from tfquant.quantizers import RecordingScope
from tfquant.wrappers import CallHook

# Draws of signs; each is one pass forward and one back.
PROBES = 8

# Rows of a draw.
ROWS = 32


def curvature(board, arrays, seed: int = 0) -> tuple[dict, dict]:
    """Returns what a change of each weight does to the outputs, to the second order.

        H = J'J,  J = d outputs / d weights,  in units of the outputs' variance
        trace = sum_j H_jj,   noise = sum_j H_jj (w_j - quantized w_j)^2

    This is the Hessian of the squared error at the float model, where the outputs are what they
    should be (Gauss-Newton); its diagonal is found from gradients of random signs (Hutchinson). As
    HAWQ does (Yao et al. 2021, arXiv:2011.10680), changes of different weights are taken as
    independent; weights alone count, not activations.

    Args:
        board: `Board`.
        arrays: Rows, one array for each input.
        seed: Of the signs.

    Returns:
        `(traces, noises)`: dicts from names of layers with weights, the latter to a dict from
        choices.
    """
    rng = np.random.default_rng(seed)
    rows = [x[:ROWS] for x in arrays]
    weights = {
        name: [(w, number, v) for w in board.wrappers(name) for number, (v, _) in _pairs(w)]
        for name, unit in board.units.items()
        if unit.has_weights
    }
    weights = {name: found for name, found in weights.items() if found}
    watched = [v for found in weights.values() for _, _, v in found]
    diagonal = [0.0] * len(watched)
    real = lambda wrapper, args, kwargs: wrapper.float_call(*args, training=False, **kwargs)  # noqa: E731
    count = 0
    for _ in range(PROBES):
        for batch in board.cut(rows):
            count += 1
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([v.value for v in watched])
                scope = RecordingScope(quantize_weights=False, see=lambda *_: None)
                with scope, CallHook(real):
                    heads = board.runner(batch)[: board.heads]
                heads = [y for y in heads if y.dtype.is_floating]
                total = sum(tf.reduce_sum(y * _signs(y, rng)) for y in heads)
            found = tape.gradient(total, [v.value for v in watched])
            for index, g in enumerate(found):
                if g is not None:
                    diagonal[index] = diagonal[index] + ops.convert_to_numpy(g).astype(float) ** 2
    found = dict(zip(map(id, watched), (x / max(count, 1) for x in diagonal), strict=True))
    traces = {name: float(sum(np.sum(found[id(v)]) for *_, v in w)) for name, w in weights.items()}
    noises = {name: {} for name in weights}
    for name, parts in weights.items():
        for choice in board.units[name].bits:
            noises[name][choice] = float(
                sum(np.sum(found[id(v)] * _change(board, w, n, choice) ** 2) for w, n, v in parts)
            )
    return traces, noises


def _pairs(wrapper):
    return enumerate(wrapper.weight_quantizers)


def _signs(y, rng):
    """Returns signs, scaled such that the squares of gradients are in units of the variance."""
    variance = float(tf.math.reduce_variance(y)) or 1.0
    signs = rng.choice([-1.0, 1.0], y.shape).astype("float32")
    return signs / np.float32(np.sqrt(variance * y.shape.num_elements()))


def _change(board, wrapper, number, choice):
    """Returns by how much a choice changes the weights of a wrapper."""
    twin = board.twin(wrapper, choice)
    if twin is None or len(twin.weight_quantizers) <= number:
        return np.zeros(())
    variable, quantizer = twin.weight_quantizers[number]
    given = ops.convert_to_numpy(wrapper.weight_quantizers[number][0])
    return ops.convert_to_numpy(quantizer.call(variable.value)) - given
