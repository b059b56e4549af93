"""The kinds of grids that training knows, by name, and how one takes another's place."""

from tfquant.quantizers.abs_max import AbsMax
from tfquant.quantizers.dorefa import DoReFa
from tfquant.quantizers.learned_clip import LearnedClip
from tfquant.quantizers.learned_step import LearnedStep, LearnedStepActivation
from tfquant.quantizers.learned_threshold import LearnedThreshold, LearnedThresholdActivation
from tfquant.quantizers.moving_average import MovingAverage
from tfquant.quantizers.static import Static

WEIGHT_QUANTIZERS = {
    "abs_max": AbsMax,
    "learned_step": LearnedStep,
    "learned_threshold": LearnedThreshold,
    "dorefa": DoReFa,
}

ACTIVATION_QUANTIZERS = {
    "moving_average": MovingAverage,
    "static": Static,
    "learned_step": LearnedStepActivation,
    "learned_threshold": LearnedThresholdActivation,
    "learned_clip": LearnedClip,
}


def check(table: dict, argument: str, name: str) -> str:
    """Returns `name` if `table` has it.

    Raises:
        ValueError: If it has not.
    """
    if name not in table:
        known = ", ".join(map(repr, table))
        raise ValueError(f"`{argument}` must be one of {known}. Received: {name!r}.")
    return name


def weight_quantizer(name: str, quantizer):
    """Returns the quantizer of family `name` in the place of an `AbsMax`; others stay."""
    family = WEIGHT_QUANTIZERS[name]
    return family(quantizer.spec) if type(quantizer) is AbsMax is not family else quantizer


def activation_quantizer(name: str, quantizer, group: str | None = None):
    """Returns the quantizer of family `name` in the place of a `Static`; others stay.

    What must agree with others, at a concatenation, keeps its calibrated grid: `Static`.
    """
    if type(quantizer) is not Static:
        return quantizer
    if group is not None:
        return Static(quantizer.spec, group=group)
    family = ACTIVATION_QUANTIZERS[name]
    return family(quantizer.spec) if family is not Static else quantizer
