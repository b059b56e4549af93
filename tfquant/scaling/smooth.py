"""SmoothQuant: outliers of activations moved into the weights that read them."""

import numpy as np

from tfquant.scaling.pairs import Pair, alive


def smooth(pair: Pair, strength: float = 0.5) -> np.ndarray:
    """Returns factors that share what is hard to quantize out between activations and weights.

        f = max |x|^strength / max |V|^(1 - strength)

    where `V` reads the channel (Xiao et al. 2022, arXiv:2211.10438, equation 4).

    Args:
        pair: `Pair` that was looked at.
        strength: 0 to 1: how much of the range of activations moves.
    """
    seen = pair.magnitudes().max(axis=0)
    read = np.abs(pair.read()).max(axis=1)
    known = alive(seen, read)
    return np.where(known, seen, 1.0) ** strength / np.where(known, read, 1.0) ** (1 - strength)
