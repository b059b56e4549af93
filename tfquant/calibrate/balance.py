"""Branches of a concatenation brought to about one range, where that is exact.

One grid holds all branches, and leaves little of one that is a thousandth of another. Where layers
that multiply make the branches and read what is joined, powers of two move from one to the other:

    concat(a, b) @ [A; B]  =  concat(a, b * 2**n) @ [A; B / 2**n]
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from keras import layers, ops

from tfquant.configs.linear import LinearConfig
from tfquant.graph.runner import Runner
from tfquant.quantizers import AbsMax, RecordingScope
from tfquant.wrappers import CallHook, Quantize, QuantizeWrapper

# Branches whose ranges are no further apart stay as they are: half of the bits are left.
FAR_APART = 16.0

# Layers whose kernel has an axis of inputs in front of that of outputs.
MIXING = (layers.Dense, layers.Conv1D, layers.Conv2D)

# Bounds that a positive factor leaves alone.
SCALING = (None, (None, None), (0, None))


class _Join(NamedTuple):
    """A concatenation of which branches may be scaled.

    Attributes:
        layer: `QuantizeWrapper` of it.
        reader: That of the layer that reads it.
        makers: That of the layer that makes each branch, `None` where none can be scaled.
        sizes: Number of channels of each branch.
    """

    layer: QuantizeWrapper
    reader: QuantizeWrapper
    makers: list
    sizes: list[int]


def balance(runner: Runner, arrays) -> list:
    """Scales branches of concatenations, and takes it back in the kernels that read them.

    The model computes what it computed, bit by bit, but on grids.

    Args:
        runner: `Runner` of a quantized model.
        arrays: Inputs of the model, a list.

    Returns:
        Pairs of a variable and the value that it had.
    """
    joins = {join.layer: join for join in _joins(runner)}
    if not joins:
        return []
    ranges = {}

    def see(layer, args, kwargs, outputs):
        del kwargs, outputs
        if layer in joins:
            ranges[layer] = [float(ops.max(ops.abs(x))) for x in args[0]]

    with RecordingScope(see=lambda *_: None), CallHook(lambda *_: None):
        runner(arrays, see)
    return [pair for layer, found in ranges.items() for pair in _scale(joins[layer], found)]


def _joins(runner):
    """Yields the concatenations of which branches may be scaled."""
    made = {x: call for call in runner.calls for x in call.flat_outputs}
    readers = {}
    for call in runner.calls:
        for x in call.inputs:
            readers.setdefault(x, []).append(call)
    ends = set(runner.ends)

    def only_reader(x):
        return readers[x][0] if len(readers.get(x, ())) == 1 and x not in ends else None

    for call in runner.calls:
        inner, (y, *_) = getattr(call.layer, "layer", None), call.flat_outputs
        if not isinstance(inner, layers.Concatenate) or not _is_called_once(call.layer):
            continue
        reader = only_reader(y)
        if reader is None or inner.axis not in (-1, len(y.shape) - 1) or not _mixes(reader.layer):
            continue
        makers = [_maker(x, made, only_reader) for x in call.inputs]
        if any(makers):
            sizes = [x.shape[-1] for x in call.inputs]
            yield _Join(call.layer, reader.layer, makers, sizes)


def _maker(x, made, only_reader):
    """Returns the layer that makes a branch, if it may be scaled and nobody else reads it."""
    while x in made and only_reader(x) is not None and isinstance(made[x].layer, Quantize):
        (x,) = made[x].inputs
    wrapper = made[x].layer if x in made and only_reader(x) is not None else None
    return wrapper if _is_plain(wrapper) and wrapper.call_sites[0].clamp in SCALING else None


def _is_called_once(layer):
    return isinstance(layer, QuantizeWrapper) and len(layer.call_sites) == 1


def _is_plain(layer):
    """Whether a layer multiplies by an 8-bit kernel whose steps follow its values."""
    if not _is_called_once(layer) or not isinstance(layer.quantize_config, LinearConfig):
        return False
    quantizers = [q for _, q in layer.weight_quantizers]
    return (
        len(quantizers) == 1
        and layer.algorithm is None
        and isinstance(quantizers[0], AbsMax)
        and quantizers[0].spec.num_bits == 8
        and not quantizers[0].grouped
        and getattr(layer.layer, "data_format", "channels_last") == "channels_last"
        and not np.any(quantizers[0].given)
        and np.all(ops.convert_to_numpy(quantizers[0].clip) == 1)
    )


def _mixes(layer):
    return (
        _is_plain(layer)
        and isinstance(layer.layer, MIXING)
        and getattr(layer.layer, "groups", 1) == 1
    )


def _scale(join, ranges):
    """Scales the branches of a join; yields what was changed and had another value."""
    ((kernel, _),) = join.reader.weight_quantizers
    values = np.array(ops.convert_to_numpy(kernel))
    if values.shape[-2] != sum(join.sizes):
        return
    starts = np.cumsum([0, *join.sizes])
    rows = [values[..., a:b, :] for a, b in itertools.pairwise(starts)]
    weights = [float(np.abs(x).max(initial=0)) for x in rows]
    exponents = _exponents(join, ranges, weights)
    for exponent, maker, size, part in zip(exponents, join.makers, join.sizes, rows, strict=True):
        if not exponent:
            continue
        gain, shift = np.full(size, 2.0**exponent, "float32"), np.zeros(size, "float32")
        changes = maker.quantize_config.rescaled(maker, gain, shift)
        for variable, value in changes or ():
            yield variable, ops.convert_to_numpy(variable)
            variable.assign(value)
        if changes:
            part /= gain[0]
    if (values != ops.convert_to_numpy(kernel)).any():
        yield kernel, ops.convert_to_numpy(kernel)
        kernel.assign(values)


def _exponents(join, ranges, weights) -> list[int]:
    """Returns by which power of two each branch is to be scaled.

    To halves, a range makes up for the other's and weights for theirs (Nagel et al. 2019,
    arXiv:1906.04721, section 4.1): what weights make much of deserves more levels.
    """
    largest = max(ranges)
    alive = [x for x in ranges if x > 0]
    if len(alive) < 2 or largest <= FAR_APART * min(alive):
        return [0] * len(ranges)
    fixed = [n for n, maker in enumerate(join.makers) if maker is None]
    goal = max(fixed or range(len(ranges)), key=ranges.__getitem__)
    found = []
    for number, (span, weight) in enumerate(zip(ranges, weights, strict=True)):
        if join.makers[number] is None or number == goal or 0 in (span, weight, weights[goal]):
            found.append(0)
            continue
        wanted, loss = math.log2(ranges[goal] / span), math.log2(weight / weights[goal])
        low, high = sorted((0.0, wanted))
        found.append(round(min(max((wanted + loss) / 2, low), high)))
    return found
