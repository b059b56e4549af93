"""SmoothQuant: outliers of activations moved into the weights that read them."""

import numpy as np

from tfquant.scaling.pairs import Pair, carrying, settled


def smooth(pair: Pair, strength: float = 0.5) -> np.ndarray:
    """Returns factors that share what is hard to quantize out between activations and weights.

        f = max |x|^strength / max |V|^(1 - strength)

    where `V` reads the channel (Xiao et al. 2022, arXiv:2211.10438, equation 4). In front of a
    depthwise convolution with steps for each channel no weights share a range, and all of that of
    activations moves.

    Args:
        pair: `Pair` that was looked at.
        strength: 0 to 1: how much of the range of activations moves.
    """
    seen = pair.magnitudes().max(axis=0)
    read = np.abs(pair.read()).max(axis=1)
    if pair.by_channel:
        strength = 1.0
    known = carrying(seen) if pair.by_channel else carrying(seen, read)
    seen, read = (np.where(known, size, 1.0) for size in (seen, read))
    return settled(seen**strength / read ** (1 - strength), known)
