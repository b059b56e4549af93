"""What an algorithm that chooses integers is, and the names under which they are known."""

import abc
import dataclasses
import difflib
from typing import ClassVar

# By name. An algorithm registers itself when it is defined.
ALGORITHMS: dict[str, type["Algorithm"]] = {}


@dataclasses.dataclass(frozen=True)
class Algorithm(abc.ABC):
    """Chooses the integers of linear layers. Its fields are its options.

    A subclass is a frozen dataclass with a `name`; defining it registers it. One without a name is
    what several have in common.
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not cls.name:
            return
        if cls.name in ALGORITHMS:
            raise ValueError(f"The name of an algorithm must be free. Received: {cls.name!r}.")
        ALGORITHMS[cls.name] = cls

    @abc.abstractmethod
    def choose(self, block) -> None:
        """Gives integers, and biases, to the layers of a block.

        Args:
            block: `Block`: its `sites`, what goes in, and what the float model makes of it.
        """

    @property
    def begins_with(self) -> tuple["Algorithm", ...]:
        """Algorithms whose integers it begins with: they are asked first."""
        return ()

    @property
    def compresses(self) -> bool:
        """Whether it gives outputs up for smaller weights: what it chose is then taken anyhow."""
        return False

    @property
    def by_layer(self) -> bool:
        """Whether a layer is all that it looks at: it is then asked layer by layer."""
        return True


def get(algorithm) -> Algorithm:
    """Returns an algorithm by name, or as it is.

    Raises:
        ValueError: If there is none of that name.
        TypeError: If it is neither a name nor an `Algorithm`.
    """
    if isinstance(algorithm, Algorithm):
        return algorithm
    if not isinstance(algorithm, str):
        raise TypeError(
            "An algorithm must be a name, an Algorithm, a list of them, or None. Received: "
            f"{algorithm!r}."
        )
    if algorithm not in ALGORITHMS:
        close = difflib.get_close_matches(algorithm, ALGORITHMS, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        names = ", ".join(map(repr, sorted(ALGORITHMS)))
        raise ValueError(f"`algorithm` must be one of {names}. Received: {algorithm!r}.{hint}")
    return ALGORITHMS[algorithm]()
