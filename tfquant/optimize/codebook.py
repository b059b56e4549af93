"""`Codebook`: few different integers for the weights of a layer, where they serve its outputs."""

import dataclasses
from typing import ClassVar

import numpy as np

from tfquant.numerics.codebooks import TABLES, k_means
from tfquant.optimize.algorithm import Algorithm
from tfquant.optimize.gptq import give, prepare, rounded

# What shares the levels of a codebook.
SHARED = ("channel", "layer")


@dataclasses.dataclass(frozen=True)
class Codebook(Algorithm):
    """Gives the weights of a layer `2**num_bits` different integers of their grid.

    The file stays that of the scheme, 8 bits usually, and runs wherever it runs; what is saved is
    the entropy of the weights: as the look-up tables that a device has for it they take `num_bits`
    each, and about that in a compressed file where levels are those of the layer.

    Levels are the centres of weighted k-means, the weights being what each input's error costs,
    rounded to the grid (Han et al. 2016, arXiv:1510.00149; Choi et al. 2017, arXiv:1612.01543,
    section 3.3), or those of a table. Weights take levels one input after the other, as
    `GPTQ` rounds them, and are improved one by one.

    Args:
        num_bits: Of an index into the levels, 1 to 7; 2 to 7 for a table.
        levels: `"k_means"`, or a table: `"nf"`, `"power_of_two"` or `"apot"`.
        shared: What shares the levels: `"channel"`, or `"layer"`, whose table is smaller.
        damping: Share of the Hessian's mean diagonal that is added to it.
        refit: Whether weights are moved towards the float outputs first, as by `GPTQ`.
        sweeps: How often weights are gone through once more, one by one.
    """

    num_bits: int = 4
    levels: str = "k_means"
    shared: str = "channel"
    damping: float = 0.01
    refit: bool = True
    sweeps: int = 8

    name: ClassVar[str] = "codebook"

    def __post_init__(self):
        least = 1 if self.levels == "k_means" else 2
        if self.levels not in ("k_means", *TABLES):
            names = ", ".join(map(repr, ("k_means", *TABLES)))
            raise ValueError(f"`levels` must be one of {names}. Received: {self.levels!r}.")
        if not isinstance(self.num_bits, int) or not least <= self.num_bits <= 7:
            raise ValueError(
                f"`num_bits` must be an integer from {least} to 7. Received: {self.num_bits!r}."
            )
        if self.shared not in SHARED:
            raise ValueError(f"`shared` must be one of {SHARED}. Received: {self.shared!r}.")

    @property
    def compresses(self) -> bool:
        """True."""
        return True

    def choose(self, block) -> None:
        """Gives the layers of a block integers, one after the other."""
        for site in block.one_by_one():
            self._choose(site, block.rng)

    def _choose(self, site, rng):
        moments, importance = prepare(site, rng, self.damping, self.refit)
        steps = site.best_steps(site.wanted, importance)
        spread = site.spread(steps)
        levels = self._levels(site, spread, importance)
        q = rounded(site, spread, moments, levels, self.damping, self.sweeps)
        give(site, q, steps, moments)

    def _levels(self, site, spread, importance):
        """Returns sorted integers: a vector, or `[groups, channels, levels]`."""
        if self.levels != "k_means":
            # A layer's steps make the largest weight of a channel the largest integer.
            return np.unique(np.rint(TABLES[self.levels](self.num_bits) * site.bounds[1]))
        x = np.swapaxes(site.wanted / spread, 1, 2)
        h = np.swapaxes(importance[:, :, None] * spread**2, 1, 2)
        rows = (1, -1) if self.shared == "layer" else (-1, x.shape[2])
        found = k_means(x.reshape(rows), 2**self.num_bits, h.reshape(rows))
        found = np.clip(np.rint(found), *site.bounds)
        return found[0] if self.shared == "layer" else found.reshape(*x.shape[:2], -1)
