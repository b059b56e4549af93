"""Algorithms that scale channels between layers: `Equalize`, `SmoothQuant` and `AWQ`."""

import abc
import dataclasses
import logging
from typing import ClassVar

import numpy as np

from tfquant.graph.graph import trace
from tfquant.optimize.algorithm import Algorithm
from tfquant.scaling import equalize, look, pairs_of, rescale, search, smooth

_logger = logging.getLogger("tfquant")

# Rows that are looked at.
ROWS = 64

# Logarithm of a factor that is not worth another round.
LEAST_MOVE = 1e-3


@dataclasses.dataclass(frozen=True)
class Scaling(Algorithm):
    """Divides channels by factors where they are computed, and takes that back where they are read.

    The float model behind a quantized one computes what it did. It runs in front of algorithms that
    choose integers, on the whole model; steps of weights and grids of activations are found again.
    Layers between which it would not be exact stay as they are, and are named.
    """

    rounds: ClassVar[int] = 1

    @abc.abstractmethod
    def factors(self, pair):
        """Returns the factors of the channels of a `Pair` that was looked at."""

    def choose(self, block) -> None:
        """Leaves integers to others."""

    def scale(self, model, wrappers, arrays) -> None:
        """Scales the channels of a quantized model, whose grids are then to be found again.

        Args:
            model: Quantized model. Changed in place.
            wrappers: `QuantizeWrapper`s that may be changed.
            arrays: Some rows of its inputs, a list.

        Raises:
            ValueError: If no channels can be scaled.
        """
        for wrapper in wrappers:
            wrapper.originals.restore()
        pairs, left = pairs_of(trace(model))
        pairs = [pair for pair in pairs if {pair.maker, *pair.readers} <= set(wrappers)]
        listed = "; ".join(f"'{name}', {why}" for name, why in left.items())
        if not pairs:
            raise ValueError(
                f"{self.name!r} needs a layer whose channels can be scaled where they are read. "
                f"Received: {listed or 'none that is linear'}."
            )
        if listed:
            _logger.warning("The channels of these layers stay as they are: %s.", listed)
        look(model, pairs, [x[:ROWS] for x in arrays])
        for _ in range(self.rounds):
            moved = 0.0
            for pair in pairs:
                factors = self.factors(pair)
                rescale(pair, factors)
                moved = max(moved, np.abs(np.log(factors)).max())
            if moved < LEAST_MOVE:
                break


@dataclasses.dataclass(frozen=True)
class Equalize(Scaling):
    """Gives channels one range wherever they share a step with others.

    Nagel et al. 2019, arXiv:1906.04721, section 4.1.
    """

    name: ClassVar[str] = "equalize"
    rounds: ClassVar[int] = 20  # One pair moves what the next one sees.

    def factors(self, pair):
        """Returns the factors of the channels of a `Pair`."""
        return equalize(pair)


@dataclasses.dataclass(frozen=True)
class SmoothQuant(Scaling):
    """Shares what is hard to quantize out between activations and the weights that read them.

    Xiao et al. 2022, arXiv:2211.10438.

    Args:
        strength: 0 to 1: how much of the range of activations moves into weights.
    """

    strength: float = 0.5

    name: ClassVar[str] = "smoothquant"

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise ValueError(f"`strength` must lie from 0 to 1. Received: {self.strength!r}.")

    def factors(self, pair):
        """Returns the factors of the channels of a `Pair`."""
        return smooth(pair, self.strength)


@dataclasses.dataclass(frozen=True)
class AWQ(Scaling):
    """Gives weights that are read with large activations finer steps, where that serves outputs.

    Outputs are judged with ranges that are clipped where that rounds better.

    Lin et al. 2023, arXiv:2306.00978.

    Args:
        grid: Number of powers of the mean magnitude that are tried, alone and over the range of
            the weights that read it.
    """

    grid: int = 20

    name: ClassVar[str] = "awq"

    def __post_init__(self):
        if not isinstance(self.grid, int) or self.grid < 1:
            raise ValueError(f"`grid` must be a positive integer. Received: {self.grid!r}.")

    def factors(self, pair):
        """Returns the factors of the channels of a `Pair`."""
        return search(pair, self.grid)
