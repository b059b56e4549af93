"""Which correction of biases a model gets: the one that its own outputs ask for."""

import dataclasses
import logging

import numpy as np

from tfquant.calibrate.bias_correction import correct, float_moments
from tfquant.calibrate.judge import Judge
from tfquant.configs.linear import LinearConfig
from tfquant.numerics import QuantSpec

_logger = logging.getLogger("tfquant")

# Methods by name, and whether each corrects deviations.
METHODS = {"mean": False, "mean_deviation": True}

# Rows that corrections are found on, and activations computed for it: fewer rows of a large model.
FIT_ROWS = 128
FIT_VALUES = 1.5e8

# One row in three is kept out of a correction, to judge it.
JUDGED = 3

# Outputs of a lower ratio, in dB, are hardly those of the float model.
FEW_DECIBELS = 6.0


@dataclasses.dataclass(frozen=True)
class Correction:
    """What calibration made of biases and gains.

    Attributes:
        method: `"none"`, `"mean"` or `"mean_deviation"`.
        sqnr: Signal to noise ratio of the model's outputs in dB, by method, on rows that no
            correction was found on; empty where nothing was compared.
        rows: Number of those rows.
    """

    method: str = "none"
    sqnr: dict[str, float] = dataclasses.field(default_factory=dict)
    rows: int = 0

    def __str__(self) -> str:
        in_words = lambda method: method.replace("_", " and ")  # noqa: E731
        ratios = ", ".join(f"{in_words(name)} {ratio:.1f}" for name, ratio in self.sqnr.items())
        compared = f" (outputs in dB on {self.rows} rows kept out: {ratios})" if ratios else ""
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


def correct_biases(model, wrappers, arrays, wanted: str, values_per_row: int, calls):
    """Corrects the biases of a calibrated model, and warns where its outputs are lost.

    Args:
        model: Model without corrections, its grids set.
        wrappers: Its `QuantizeWrapper`s.
        arrays: Inputs, a list, of all rows that may be used.
        wanted: From `check_method`. `"auto"` takes what serves the outputs best on rows that it
            was not found on: nothing, means, or means and deviations, which only weights of less
            than 8 bits need. A single row cannot be kept out, so that it corrects nothing.
        values_per_row: Activations that the model computes for a row.
        calls: `RealCalls` of the model.

    Returns:
        `Correction`.
    """
    room = max(1, min(FIT_ROWS, int(FIT_VALUES / max(values_per_row, 1))))
    methods = [wanted] if wanted in METHODS else []
    if wanted == "auto":
        methods = list(METHODS) if _narrow(wrappers) else ["mean"]
    rows, others = _split(model, arrays, room, keep_out=wanted == "auto")
    if others is None:
        for method in methods if wanted != "auto" else []:
            _warn_of(correct(model, rows, float_moments(model, rows), METHODS[method], calls))
        return Correction(wanted if wanted in METHODS else "none")
    judge = Judge(model, others, len(rows[0]), calls)
    correction = _best(model, wrappers, rows, judge, methods, len(others[0]))
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


def _best(model, wrappers, rows, judge, methods, judged) -> Correction:
    """Tries `methods` and leaves the best one in place."""
    best, sqnr, left = "none", {"none": judge.sqnr()}, []
    state = [wrapper.originals.snapshot() for wrapper in wrappers]
    moments = float_moments(model, rows) if methods else {}
    calls = judge.calls
    for method in methods:
        for wrapper in wrappers:
            wrapper.originals.restore()
        judge.calls = calls.copy()
        left = correct(model, rows, moments, METHODS[method], judge.calls)
        sqnr[method] = judge.sqnr()
        if sqnr[method] > sqnr[best]:
            best, state = method, [wrapper.originals.snapshot() for wrapper in wrappers]
    for undo in state:
        undo()
    _warn_of(left)
    return Correction(best, sqnr, judged)


def _split(model, arrays, room, keep_out):
    """Returns rows to find a correction on, and others to judge it by, or `None` without any."""
    count, size = len(arrays[0]), model.inputs[0].shape[0]
    if size is not None:  # Rows come by batches of a fixed size.
        chosen, rest = np.arange(size), np.arange(size, min(count, max(2 * size, room)))
        rest = rest[: len(rest) // size * size]
    else:
        wanted = room + room // (JUDGED - 1) if keep_out else room
        places = np.unique(np.linspace(0, count - 1, min(count, max(wanted, 2))).astype(int))
        kept = np.arange(len(places)) % JUDGED == 1
        chosen, rest = (places[~kept], places[kept]) if keep_out else (places, places[:0])
    take = lambda index: [array[index] for array in arrays]  # noqa: E731
    return take(chosen), take(rest) if len(rest) and keep_out else None


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
