"""`sensitivity`: which layer hurts, at which width, and what would help."""

import math

from tfquant.board import check_choices
from tfquant.registry.recipe import FLOAT
from tfquant.sensitivity.advice import REMEDIES, Advice
from tfquant.sensitivity.report import LayerSensitivity, Sensitivity
from tfquant.sensitivity.study import LARGEST, Study, check_effort, showing

MODES = ("one", "all_but_one")


def sensitivity(
    model,
    data,
    *,
    choices=("w8a8", "w4a8"),
    validation=None,
    metric=None,
    mode: str = "one",
    gradients: bool = True,
    advice: bool = True,
    effort: str = "default",
    device: str | None = None,
    cache=None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Sensitivity:
    """Measures what quantizing each layer of a model costs its outputs.

    The model is quantized once for each scheme; layers are then switched on and off. The model is
    left as it is, and interrupting it loses what is not in the `cache`.

    Args:
        model: Float model, as of `quantize_model`.
        data: Rows as of `calibrate`, without labels. A hundred serve.
        choices: Schemes to try for each layer: names or `Scheme`s.
        validation: `(x, y)`: rows with answers, where `metric` is to be measured as well.
        metric: Function of the answers and the outputs of the model, arrays, of which more is
            better; `None` for the share of right predictions.
        mode: `"one"`: one layer is quantized, the others are float; `"all_but_one"`: one layer is
            float, the others are quantized.
        gradients: Whether to predict the same from gradients, too: the trace of the Hessian.
        advice: Whether to look for what helps the worst layers.
        effort: As of `quantize`: `"fast"`, `"default"` or `"best"`.
        device: As of `quantize_model`.
        cache: File to keep figures in, one by one: what was interrupted goes on where it was. They
            are found again by the content of model, data and settings, of a metric by what it says.
        batch_size: Rows to compute at once.
        seed: Of what is drawn by chance.
        progress: Whether to show a progress bar with the time that is left.

    Returns:
        `Sensitivity`; print it. Its `layers` come worst first, its `advice` most helpful first.

    Raises:
        TypeError: If the model is no Keras model, or the metric no function.
        ValueError: If choices, mode or effort are unknown, the data do not fit, or the metric
            raises or returns no finite number.

    Example:

    ```python
    found = tfq.sensitivity(model, images, choices=["w8a8", "w4a8"])
    print(found)
    recipe = found.advice[0].apply("w4a8")
    ```
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be 'one' or 'all_but_one'. Received: {mode!r}.")
    check_effort(effort)
    given = check_choices(choices)
    study = Study(
        model,
        data,
        given,
        validation=validation,
        metric=metric,
        extra=REMEDIES if advice else (),
        effort=effort,
        device=device,
        cache=cache,
        batch_size=batch_size,
        seed=seed,
    )
    names = [x for x in given if x != FLOAT]
    with showing("Sensitivity", progress) as study.progress:
        return measure(study, names, mode, gradients, advice, by_score=callable(metric))


def measure(study: Study, names, mode, gradients, advice, by_score=False) -> Sensitivity:
    """Measures every layer; see `sensitivity`.

    Args:
        study: `Study`.
        names: Names of choices to measure.
        mode: One of `MODES`.
        gradients: Whether to ask for gradients.
        advice: Whether to look for advice.
        by_score: Whether the metric says which layer is worse, and not noise.
    """
    everywhere = lambda x: lambda: study.board.everywhere(x)  # noqa: E731
    whole = {x: study.sqnr(f"all {x}", everywhere(x)) for x in names}
    float_score, whole_score = None, {}
    if study.scoring is not None:
        float_score = study.score("float", everywhere(FLOAT))
        whole_score = {x: study.score(f"all {x}", everywhere(x)) for x in names}
    traces, noises = study.curvature() if gradients else ({}, {})
    units = study.units
    study.progress.begin(len(units) * len(names))
    sqnr = {unit["name"]: {} for unit in units}
    score = {unit["name"]: {} for unit in units}
    for choice in names:
        for unit in units:
            name, option = unit["name"], unit["options"].get(choice)
            study.progress.tell(f"{name} {choice}")
            if option is not None:
                figure, chosen = _alone(study, name, option)
                if mode != "one":
                    figure, chosen = _others(study, name, choice)
                sqnr[name][choice] = study.sqnr(figure, chosen)
                if study.scoring is not None:
                    score[name][choice] = study.score(figure, chosen)
            study.progress.advance()
    shares = _shares(mode, sqnr, whole)
    noisiest = min(names, key=whole.get)
    layers = [
        LayerSensitivity(
            unit["name"],
            unit["kind"],
            unit["parameters"],
            sqnr[unit["name"]],
            shares[unit["name"]],
            score[unit["name"]],
            traces.get(unit["name"]),
            _predicted(noises.get(unit["name"], {}), unit["options"], names),
            {x: o for x, o in unit["options"].items() if x in names and o != x},
        )
        for unit in units
        # Behind the last layer nobody sees what a softmax rounds.
        if unit["parameters"] or min(sqnr[unit["name"]].values(), default=LARGEST) < LARGEST
    ]
    sign = 1 if mode == "one" else -1
    key = lambda x: (  # noqa: E731
        sign * x.score.get(noisiest, math.inf * sign) if by_score else 0,
        -x.noise_share.get(noisiest, -1),
    )
    layers.sort(key=key)
    found = []
    if advice:
        study.progress.tell("advice")
        order = sorted(shares, key=lambda name: -shares[name].get(noisiest, -1))
        described = study.advice(order, noisiest)
        found = [Advice(**{**x, "with_them": tuple(x["with_them"])}) for x in described]
    metric = "" if study.scoring is None else study.scoring.name
    return Sensitivity(
        study.model.name,
        mode,
        list(names),
        study.rows(),
        whole,
        layers,
        found,
        float_score,
        whole_score,
        metric,
    )


def _alone(study, name, option):
    chosen = lambda: {**study.board.everywhere(FLOAT), name: option}  # noqa: E731
    return f"one {name} {option}", chosen


def _others(study, name, choice):
    chosen = lambda: {**study.board.everywhere(choice), name: FLOAT}  # noqa: E731
    return f"but {name} {choice}", chosen


def _shares(mode, sqnr, whole) -> dict:
    """Returns the share of noise of each layer, by choice."""
    power = lambda ratio: 0.0 if ratio >= LARGEST else 10 ** (-ratio / 10)  # noqa: E731
    shares = {name: {} for name in sqnr}
    for choice, ratio in whole.items():
        of = {name: power(found[choice]) for name, found in sqnr.items() if choice in found}
        total = sum(of.values())
        if mode != "one":
            total = power(ratio)
            of = {name: max(0.0, total - noise) for name, noise in of.items()}
        for name, noise in of.items():
            shares[name][choice] = noise / total if total else 0.0
    return shares


def _predicted(noises, options, names) -> dict:
    """Returns the ratios that gradients predict, in dB."""
    found = {x: noises[options[x]] for x in names if options.get(x) in noises}
    return {
        x: min(LARGEST, -10 * math.log10(noise)) if noise > 0 else LARGEST
        for x, noise in found.items()
    }
