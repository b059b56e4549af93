"""Which correction of biases a model gets: the one that its own outputs ask for."""

import dataclasses
import logging

from tfquant.calibrate.bias_correction import correct
from tfquant.configs.linear import LinearConfig
from tfquant.numerics import QuantSpec

_logger = logging.getLogger("tfquant")

# Methods by name, and whether each corrects deviations.
METHODS = {"mean": False, "mean_deviation": True}

# Outputs of a lower ratio, in dB, are hardly those of the float model.
FEW_DECIBELS = 6.0


@dataclasses.dataclass(frozen=True)
class Correction:
    """What calibration made of biases and gains.

    Attributes:
        method: `"none"`, `"mean"` or `"mean_deviation"`.
        sqnr: Signal to noise ratio of the model's outputs in dB, by method, on rows that no
            correction was found on.
        rows: Number of those rows; 0 where there is a single row, or batch of a fixed size.
    """

    method: str = "none"
    sqnr: dict[str, float] = dataclasses.field(default_factory=dict)
    rows: int = 0

    def __str__(self) -> str:
        in_words = lambda method: method.replace("_", " and ")  # noqa: E731
        ratios = ", ".join(f"{in_words(name)} {ratio:.1f}" for name, ratio in self.sqnr.items())
        compared = f" (outputs in dB on {self.rows} rows kept out: {ratios})" if self.rows else ""
        return in_words(self.method) + compared


def check_method(wanted) -> str:
    """Returns the name of a wish for a correction: `"auto"`, `"none"` or one of `METHODS`.

    Raises:
        ValueError: If it is none.
    """
    names = {True: "auto", False: "none", **{name: name for name in ("auto", *METHODS)}}
    if not isinstance(wanted, (bool, str)) or wanted not in names:
        raise ValueError(
            "`bias_correction` must be True, False, 'auto', 'mean' or 'mean_deviation'. "
            f"Received: {wanted!r}."
        )
    return names[wanted]


def methods_of(wanted: str, wrappers) -> list[str]:
    """Returns the methods to try for a wish, from `check_method`.

    Only weights of less than 8 bits need their deviations mended.
    """
    if wanted in METHODS:
        return [wanted]
    if wanted == "none":
        return []
    return list(METHODS) if _narrow(wrappers) else ["mean"]


def correct_biases(model, wrappers, runner, judge, methods, wanted: str, plain) -> Correction:
    """Corrects the biases of a calibrated model, and warns where its outputs are lost.

    Args:
        model: Model without corrections, its grids set.
        wrappers: Its `QuantizeWrapper`s.
        runner: `Runner` of it.
        judge: `Judge` of it.
        methods: From `methods_of`.
        wanted: From `check_method`. `"auto"` takes what serves the outputs best on rows that it
            was not found on: nothing, means, or means and deviations. A single row cannot be kept
            out, so that it corrects nothing.
        plain: `Sqnr` of the model as it is; `None` if nobody knows.

    Returns:
        `Correction`.
    """
    if wanted == "auto" and not judge.rows.kept_out:
        methods = []
    forced = wanted != "auto" and bool(methods)
    sqnr = {} if forced else {"none": (plain or judge.sqnr()).kept_out}
    correction = _best(wrappers, runner, judge, methods, sqnr)
    ratio = correction.sqnr[correction.method]
    if ratio < FEW_DECIBELS:
        _logger.warning(
            "The outputs of '%s' are hardly those of the float model: %.1f dB of signal over "
            "noise, with biases corrected by %s. More bits would help (scheme='w8a8', or 'w8a16'), "
            "or float layers where it hurts (`skip`; `output_sqnr` of the layers in the report of "
            "tfq.to_tflite shows where), more rows for calibration, or training.",
            model.name,
            ratio,
            correction.method.replace("_", " and "),
        )
    return correction


def _best(wrappers, runner, judge, methods, sqnr) -> Correction:
    """Tries `methods` and leaves the best one in place, `sqnr` being known already."""
    best, left = next(iter(sqnr), None), []
    state = [wrapper.originals.snapshot() for wrapper in wrappers]
    calls, (fitted,) = judge.calls, judge.rows.batches(0, judge.rows.fitted)
    for method in methods:
        for wrapper in wrappers:
            wrapper.originals.restore()
        judge.calls = calls.copy()
        left = correct(runner, fitted, judge.moments, METHODS[method], judge.calls)
        sqnr[method] = judge.sqnr().kept_out
        if len(sqnr) == 1 or sqnr[method] > sqnr[best]:
            best, state = method, [wrapper.originals.snapshot() for wrapper in wrappers]
    for undo in state:
        undo()
    _warn_of(left)
    return Correction(best, sqnr, judge.rows.kept_out)


def _narrow(wrappers) -> bool:
    """Whether weights have less than 8 bits anywhere."""
    specs = [wrapper.quantize_config.weights for wrapper in wrappers if _is_linear(wrapper)]
    return any(isinstance(spec, QuantSpec) and spec.num_bits < 8 for spec in specs)


def _is_linear(wrapper):
    return isinstance(wrapper.quantize_config, LinearConfig)


def _warn_of(left):
    if left:
        _logger.warning(
            "These layers put out values that are not finite, so that their biases stay: %s. "
            "Keep what is in front of them in float (`skip`).",
            ", ".join(f"'{name}'" for name in dict.fromkeys(left)),
        )
