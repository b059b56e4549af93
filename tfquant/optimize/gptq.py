"""`GPTQ`: errors of weights that are rounded first are made up for by those to come."""

import dataclasses
from typing import ClassVar

import numpy as np

from tfquant.optimize.algorithm import Algorithm
from tfquant.optimize.block import gain_of_norm, shift_bias
from tfquant.rounding.moments import Moments
from tfquant.rounding.quadratic import descend, gptq
from tfquant.rounding.refit import Refit, best_ridge

# A gain outside mends no rounding: what it would scale is noise.
LARGEST_GAIN = 2.0


@dataclasses.dataclass(frozen=True)
class GPTQ(Algorithm):
    """Rounds a layer's weights one input after the other, on the inputs that it gets.

    First the weights are moved so that the inputs of the quantized model give the outputs of the
    float model (`refit`); then they are rounded in turn (`quadratic.gptq`) and improved one by one
    (`quadratic.descend`); then each channel gets back the mean and the deviation that it had.

    Frantar et al. 2022, arXiv:2210.17323; Hubara et al. 2021, arXiv:2006.10518.

    Args:
        damping: Share of the Hessian's mean diagonal that is added to it.
        order: Whether inputs with the largest diagonal are rounded first.
        refit: Whether weights are moved towards the float outputs first. How far is decided for
            each layer on rows that it was not found on. A layer that reads what it has computed
            itself is not moved.
        sweeps: How often weights are gone through once more, one by one.
        deviation: Whether a channel's steps are scaled to the deviation that it had.
    """

    damping: float = 0.01
    order: bool = True
    refit: bool = True
    sweeps: int = 8
    deviation: bool = True

    name: ClassVar[str] = "gptq"

    def __post_init__(self):
        if not 0 <= self.damping < 10 or self.sweeps < 0:
            raise ValueError(
                "`damping` must lie from 0 to 10 and `sweeps` must not be negative. Received: "
                f"damping={self.damping!r}, sweeps={self.sweeps!r}."
            )

    def choose(self, block) -> None:
        """Gives the layers of a block integers, one after the other."""
        for site in block.one_by_one():
            self._choose(site, block.rng)

    def _choose(self, site, rng):
        moments, importance = prepare(site, rng, self.damping, self.refit)
        steps = site.best_steps(site.wanted, importance)
        spread = site.spread(steps)
        options = self.damping, self.sweeps, self.order
        q = rounded(site, spread, moments, site.bounds, *options)
        if self.deviation and not site.quantizer.grouped:
            gain = _gain(site, q * spread, moments)
            steps = (steps * site.by_step(gain)).astype(np.float32)
            site.wanted = site.wanted * gain[:, None]
        give(site, q, steps, moments)


def prepare(site, rng, damping, refit: bool):
    """Finds what a layer reads, and the weights that it would rather round.

    Args:
        site: `Site`; `wanted` is set.
        rng: Where chance comes from.
        damping: Share of the mean of the diagonal that is added to it.
        refit: Whether weights are moved towards the float outputs, where what the layer reads
            stays: weights would shrink against noise that goes with the integers of before, once
            for each step that a recurrent layer takes.

    Returns:
        `(moments, importance)`: `Moments`, about zero where no bias can give a mean back, and the
        damped diagonal of the Hessian, `[groups, k]`.
    """
    halves = site.moments(rng)
    moments = halves[0] + halves[1]
    if not site.has_bias:
        halves, moments = [half.raw() for half in halves], moments.raw()
    site.wanted = site.weights
    if refit and site.settled and site.streams.batches > 1:
        ridge = best_ridge(site.weights, halves)
        if ridge is not None:
            site.wanted = Refit(site.weights, moments)(ridge)
    importance = np.maximum(np.einsum("gkk->gk", moments.hessian), 0.0)
    return moments, importance + damping * importance.mean(axis=1, keepdims=True)


def rounded(site, spread, moments, grid, damping, sweeps, order=True):
    """Returns integers of `grid` for the wanted weights: rounded in turn, then one by one.

    Args:
        site: `Site`.
        spread: Steps, one for each weight, as matrices.
        moments: `Moments`.
        grid: As the bounds of `quadratic.gptq`.
        damping: As of `quadratic.gptq`.
        sweeps: As of `quadratic.descend`.
        order: As of `quadratic.gptq`.
    """
    q = gptq(site.wanted, spread, moments.hessian, grid, damping, order)
    return descend(q, site.wanted, spread, moments.hessian, grid, sweeps)


def give(site, integers, steps, moments: Moments) -> None:
    """Gives a layer integers, and its bias what makes the means of its channels right."""
    site.give(integers, steps)
    got = site.sums(moments.mean, integers * site.spread(steps))
    wanted = site.sums(moments.float_mean, site.weights)
    shift_bias(site, gain_of_norm(site) * (wanted - got))


def _gain(site, weights, moments):
    """Returns the gain of each channel that makes its deviation that of the float model."""
    variance = lambda h, w: np.einsum("gkc,gkc->gc", w, h @ w)  # noqa: E731
    wanted = variance(moments.float_hessian, site.weights)
    got = variance(moments.hessian, weights)
    alive = (wanted > 0) & (got > 0)
    gain = np.sqrt(np.where(alive, wanted, 1.0) / np.where(alive, got, 1.0))
    return np.clip(gain, 1 / LARGEST_GAIN, LARGEST_GAIN)
