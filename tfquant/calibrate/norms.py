"""Norms in integers where that costs the model's outputs little, else in float."""

import dataclasses

from tfquant.wrappers.norms import leave_in_float, norms_of

# What the outputs may lose by norms in integers, in dB.
MOST_LOSS = 1.0

# Norms that are tried one by one, where all of them together cost more.
MOST_SINGLE = 8


@dataclasses.dataclass(frozen=True)
class Norms:
    """What calibration made of the norms of a model.

    Attributes:
        integer: Names of those that compute in integers.
        floating: Names of those that compute in float.
        sqnr: Signal to noise ratio of the model's outputs in dB, on the device: `"float"` with all
            of these norms in float, `"integer"` with all in integers, `"taken"` as they are.
    """

    integer: tuple[str, ...]
    floating: tuple[str, ...]
    sqnr: dict[str, float]

    @property
    def loss(self) -> float:
        """What the outputs lose by the norms that compute in integers, in dB."""
        return self.sqnr["float"] - self.sqnr["taken"]

    def __str__(self) -> str:
        ratios = ", ".join(f"{name} {ratio:.1f}" for name, ratio in self.sqnr.items())
        named = f" (float: {', '.join(self.floating)})" if self.floating else ""
        return (
            f"{len(self.integer)} in integers, {len(self.floating)} in float{named}: costs "
            f"{self.loss:.1f} dB of the outputs ({ratios})"
        )


def choose_norms(model, judge) -> Norms | None:
    """Leaves norms in float where integers would cost the outputs `MOST_LOSS` or more.

    All of them are tried together, and if that costs too much one after the other, each with those
    that were taken before it. Not those that are to have integers whatever it costs.

    Args:
        model: Quantized model, its grids set.
        judge: `Judge` of it.

    Returns:
        `Norms`; `None` where the model has none that could be in integers.
    """
    forms = norms_of(model)
    if not forms:
        return None
    free = [name for name, form in forms.items() if form == "auto"]

    def ratio(names):
        leave_in_float(model, names)
        return judge.device_sqnr()

    sqnr = {"float": ratio(list(forms)), "integer": ratio([])}
    taken, left = sqnr["integer"], []
    if sqnr["float"] - taken >= MOST_LOSS and free:
        left, taken = list(free), sqnr["float"] if len(free) == len(forms) else ratio(free)
        least = taken - MOST_LOSS
        for name in free[:MOST_SINGLE] if len(free) > 1 else ():
            others = [x for x in left if x != name]
            found = ratio(others)
            if found > least:
                left, taken = others, found
    leave_in_float(model, left)
    integer = tuple(name for name in forms if name not in left)
    return Norms(integer, tuple(left), {**sqnr, "taken": taken})
