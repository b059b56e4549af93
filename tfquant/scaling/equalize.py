"""Cross-layer equalization: a channel takes as much of the range where it is made and read."""

import numpy as np

from tfquant.scaling.pairs import Pair, alive


def equalize(pair: Pair) -> np.ndarray:
    """Returns factors that give each channel's weights one range on both sides.

        f = sqrt(max |W| / max |V|)   so that   max |W / f| = max |f V|

    where `W` makes the channel, with its batch norm, and `V` reads it (Nagel et al. 2019,
    arXiv:1906.04721, section 4.1). Nothing is looked at but weights.

    Args:
        pair: `Pair`.
    """
    made = np.abs(pair.made()).max(axis=0)
    read = np.abs(pair.read()).max(axis=1)
    known = alive(made, read)
    return np.sqrt(np.where(known, made, 1.0) / np.where(known, read, 1.0))
