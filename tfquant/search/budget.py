"""`Budget`: what a mixture may cost."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a mixture of schemes may cost; `None` for no bound.

    Attributes:
        bytes: Size of the `.tflite` file.
        bops: Bit operations of a row: products of a kernel, times the bits of both operands.
        latency: Seconds of a row. Not measured yet: an error.
        max_drop: By how much the metric on validation rows may be lower than the float model's:
            0.005 is half a point of accuracy.

    Raises:
        ValueError: If no bound is given, or one is no number that can be kept.
    """

    bytes: int | None = None
    bops: float | None = None
    latency: float | None = None
    max_drop: float | None = None

    def __post_init__(self):
        given = {
            name: value for name, value in dataclasses.asdict(self).items() if value is not None
        }
        if not given:
            raise ValueError(
                "A budget needs a bound: bytes, bops or max_drop. Received: Budget() without."
            )
        if self.latency is not None:
            raise ValueError(
                "`latency` is not measured yet: a budget is of bytes, bops or max_drop. "
                f"Received: latency={self.latency!r}."
            )
        for name, value in given.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and (value > 0 or name == "max_drop")):
                raise ValueError(f"`{name}` must be a positive number. Received: {value!r}.")
            if value < 0:
                raise ValueError(f"`{name}` must not be negative. Received: {value!r}.")

    def __str__(self) -> str:
        words = []
        if self.bytes is not None:
            words.append(f"{self.bytes:,} bytes")
        if self.bops is not None:
            words.append(f"{self.bops:.4g} bit operations")
        if self.max_drop is not None:
            words.append(f"a drop of {self.max_drop:g}")
        return ", ".join(words)
