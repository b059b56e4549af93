"""`AdaRound` and `BRECQ`: learned rounding, layer by layer and block by block."""

import dataclasses
from typing import ClassVar

from tfquant.optimize.algorithm import Algorithm
from tfquant.optimize.gptq import GPTQ
from tfquant.optimize.learn import Options, learn


@dataclasses.dataclass(frozen=True)
class AdaRound(Algorithm):
    """Learns whether each weight of a layer goes up or down, with its bias and gain.

    What the layer puts out behind its activation, rounded to its grid, is to be what it puts out
    in the float model. Begins with the integers of another algorithm.

    Nagel et al. 2020, arXiv:2004.10568.

    Args:
        steps: Steps of the optimizer for a layer.
        batch_size: Rows of a step.
        rate: Learning rate of Adam.
        rounding_weight: Weight of the loss that ends rounding in whole numbers, relative to the
            error that learning began with, after the warm-up.
        growth: How many times that weight grows until the end.
        beta: Its exponent at first and in the end.
        warm_up: Share of the steps without it.
        drop: Share of a layer's inputs that are the float model's while it is learned (Wei et
            al. 2022, arXiv:2203.05740).
        start: Algorithm whose integers are the beginning, or `None` for those there are.
    """

    steps: int = 1000
    batch_size: int = 32
    rate: float = 0.1
    rounding_weight: float = 0.1
    growth: float = 1000.0
    beta: tuple[float, float] = (20.0, 2.0)
    warm_up: float = 0.2
    drop: float = 0.0
    start: Algorithm | None = dataclasses.field(default_factory=GPTQ)

    name: ClassVar[str] = "adaround"

    def __post_init__(self):
        if self.steps < 1 or self.batch_size < 1 or not self.rate > 0:
            raise ValueError(
                "`steps`, `batch_size` and `rate` must be positive. Received: "
                f"steps={self.steps!r}, batch_size={self.batch_size!r}, rate={self.rate!r}."
            )
        if not (0 <= self.warm_up < 1 and 0 <= self.drop <= 1):
            raise ValueError(
                "`warm_up` and `drop` are shares. Received: "
                f"warm_up={self.warm_up!r}, drop={self.drop!r}."
            )

    @property
    def begins_with(self):
        """The algorithm that finds the beginning."""
        return () if self.start is None else (*self.start.begins_with, self.start)

    def choose(self, block) -> None:
        """Learns the roundings of a block."""
        names = [field.name for field in dataclasses.fields(Options)]
        learn(block, Options(**{name: getattr(self, name) for name in names}))


@dataclasses.dataclass(frozen=True)
class BRECQ(AdaRound):
    """Learns the roundings of all layers of a block together, as `AdaRound` those of a layer.

    A block ends where a single tensor is all that is read later: behind the sum of a residual
    block, say. Li et al. 2021, arXiv:2102.05426.
    """

    name: ClassVar[str] = "brecq"

    @property
    def by_layer(self):
        """False: a block is what it looks at."""
        return False
