"""Cross-layer equalization: a channel takes as much of each range that it shares with others."""

import numpy as np

from tfquant.scaling.pairs import Pair, carrying, settled


def equalize(pair: Pair) -> np.ndarray:
    """Returns factors that give channels one range wherever they share a step.

        f = sqrt(max |W| / max |V|)   so that   max |W / f| = max |f V|

    where `W` makes the channel, with its batch norm, and `V` reads it (Nagel et al. 2019,
    arXiv:1906.04721, section 4.1). That is for weights of which a layer has one step. Where each
    channel that is made has steps of its own, its range there costs nothing, and `f = 1 / max |V|`;
    where each has on both sides, as in front of a depthwise convolution, only activations share a
    grid, and `f = max |x|`.

    Args:
        pair: `Pair` that was looked at.
    """
    if pair.by_channel:
        seen = pair.magnitudes().max(axis=0)
        known = carrying(seen)
        return settled(np.where(known, seen, 1.0), known)
    read = np.abs(pair.read()).max(axis=1)
    if pair.made_by_channel:
        seen = pair.magnitudes().max(axis=0)
        known = carrying(seen, read)
        return settled(1.0 / np.where(known, read, 1.0), known)
    made = np.abs(pair.made()).max(axis=0)
    known = carrying(made, read)
    return settled(np.sqrt(np.where(known, made, 1.0) / np.where(known, read, 1.0)), known)
