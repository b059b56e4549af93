"""What gradients say of layers: how much the outputs make of a change of weights."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from tfquant.quantizers import RecordingScope
from tfquant.wrappers import CallHook

# Draws of signs; each is one pass forward and one back.
PROBES = 8

# Rows of a draw.
ROWS = 32


class _Weight(NamedTuple):
    """A quantized weight: the layer that it is of, its wrapper, and which of its weights it is."""

    unit: str
    wrapper: object
    number: int
    variable: object


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
    weights = [
        _Weight(name, wrapper, number, variable)
        for name, unit in board.units.items()
        if unit.has_weights
        for wrapper in board.wrappers(name)
        for number, (variable, _) in enumerate(wrapper.weight_quantizers)
    ]
    watched = [weight.variable for weight in weights]
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
    traces, noises = {}, {}
    for weight, h in zip(weights, diagonal, strict=True):
        h, name = h / max(count, 1), weight.unit
        traces[name] = traces.get(name, 0.0) + float(np.sum(h))
        of_choices = noises.setdefault(name, dict.fromkeys(board.units[name].bits, 0.0))
        for choice in of_choices:
            of_choices[choice] += float(np.sum(h * _change(board, weight, choice) ** 2))
    return traces, noises


def _signs(y, rng):
    """Returns signs, scaled such that the squares of gradients are in units of the variance."""
    variance = float(tf.math.reduce_variance(y)) or 1.0
    signs = rng.choice([-1.0, 1.0], y.shape).astype("float32")
    return signs / np.float32(np.sqrt(variance * y.shape.num_elements()))


def _change(board, weight, choice):
    """Returns by how much a choice changes a weight."""
    twin = board.twin(weight.wrapper, choice)
    if twin is None or len(twin.weight_quantizers) <= weight.number:
        return np.zeros(())
    variable, quantizer = twin.weight_quantizers[weight.number]
    given = ops.convert_to_numpy(weight.variable)
    return ops.convert_to_numpy(quantizer.call(variable.value)) - given
