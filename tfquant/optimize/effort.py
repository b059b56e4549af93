"""`quantize`: a float model and data to a model of integers, at an effort that is chosen."""

import dataclasses
import logging
import math

import keras

from tfquant.calibrate import calibrate
from tfquant.calibrate.seen import fewer
from tfquant.data.batches import batches, joined
from tfquant.graph.walk import leaves
from tfquant.optimize.optimize import optimize
from tfquant.reading.subclassed import readable
from tfquant.registry.recipe import Recipe
from tfquant.rewrite import quantize_model

_logger = logging.getLogger("tfquant")


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to look for good grids and integers.

    Attributes:
        observer: What chooses the ranges of activations.
        bias_correction: As of `calibrate`.
        algorithm: What chooses the integers of weights, `None` for the nearest.
        spared: Share of a model's weights that may have 8 bits where the scheme has fewer: those of
            its smallest layers.
        summary: What it does, in words.
    """

    observer: str
    bias_correction: bool | str
    algorithm: str | None
    spared: float
    summary: str


EFFORTS = {
    "fast": Effort(
        "percentile", False, None, 0.0, "the data are seen once, weights rounded to the nearest"
    ),
    "default": Effort(
        "auto", True, None, 0.0, "ranges and corrections of biases that serve the model's outputs"
    ),
    "best": Effort(
        "auto",
        True,
        "gptq",
        0.02,
        "and integers chosen layer by layer on all of the data, in minutes; the smallest layers, "
        "which hold 2% of the weights, have 8 bits",
    ),
}


def sparing(recipe: Recipe, model, share: float) -> Recipe:
    """Returns a recipe under which the smallest layers of a model have weights of 8 bits.

    The first layers of a network of images hold little and lose most: with few inputs there is no
    other weight to make up for one that was rounded. Rules that there are come first.

    Args:
        recipe: `Recipe`.
        model: The model that it is for.
        share: Of the model's weights, how many those layers may hold together.
    """
    bits = recipe.scheme and recipe.scheme.weight_bits
    if not share or not bits or bits >= 8:
        return recipe
    sizes = {}
    for layer in leaves(model):
        if layer.built:
            size = sum(math.prod(w.shape) for w in layer.weights if len(w.shape) > 1)
            sizes |= {layer: size} if size else {}
    room, spared = share * sum(sizes.values()), set()
    for layer, size in sorted(sizes.items(), key=lambda pair: pair[1]):
        room -= size
        if room < 0:
            break
        spared.add(layer)
    if not spared:
        return recipe
    return recipe.where(lambda layer: layer in spared, weight_bits=8, group_size=0)


def quantize(
    model,
    data=None,
    scheme="w8a8",
    *,
    effort: str = "default",
    skip=(),
    norms: str | None = None,
    device: str | None = None,
    observer=None,
    bias_correction: bool | str | None = None,
    batch_size: int = 32,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **settings,
):
    """Quantizes a model on data: `quantize_model`, `calibrate` and, at the best, `optimize`.

    Args:
        model: As of `quantize_model`.
        data: As of `calibrate`, without labels. A hundred rows serve, for `effort="best"` 512 to
            1024. `None` for schemes of float activations, whose weights are then rounded to the
            nearest.
        scheme: Name of a scheme, a `Scheme`, or a `Recipe`. Where a recipe names algorithms, they
            choose the integers of their layers at any effort but `"fast"`, and no other does.
        effort: `"fast"`, `"default"` or `"best"`; see `tfquant.optimize.EFFORTS`.
        skip: As of `quantize_model`.
        norms: Likewise.
        device: Likewise.
        observer: What chooses the ranges of activations, as of `calibrate`; `None` for that of the
            effort.
        bias_correction: As of `calibrate`; `None` for that of the effort.
        batch_size: Rows to compute at once, where `data` is not batched already.
        steps: Number of batches to take; `None` takes all.
        seed: Of what is drawn by chance.
        progress: Whether to show progress bars.
        **settings: Further ones of `quantize_model`: `device`, `registry`, `unknown_layers`,
            `weight_quantizer`, `activation_quantizer`.

    Returns:
        `keras.Model`, as `quantize_model` returns it, calibrated.

    Raises:
        TypeError: As `quantize_model` and `calibrate`.
        ValueError: Likewise; if the effort is unknown, or data are needed and there are none.

    Example:

    ```python
    q = tfq.quantize(model, images, "w4a8", effort="best")
    tfq.to_tflite(q, "model.tflite")
    ```
    """
    if effort not in EFFORTS:
        names = ", ".join(map(repr, EFFORTS))
        raise ValueError(f"`effort` must be one of {names}. Received: {effort!r}.")
    chosen, recipe = EFFORTS[effort], Recipe.of(scheme)
    optimizes = chosen.algorithm or (effort != "fast" and recipe.names_algorithms)
    if data is None and (recipe.static or optimizes):
        why = "grids of activations" if recipe.static else f"effort={effort!r}"
        raise ValueError(f"`data` must be rows of the model's inputs for {why}. Received: None.")
    model = readable(model)
    if chosen.spared and isinstance(model, keras.Model):  # What is none is refused below.
        recipe = sparing(recipe, model, chosen.spared)
    q = quantize_model(model, recipe, skip=skip, norms=norms, device=device, **settings)
    if data is None:
        return q
    if optimizes:  # It is read twice; a generator can be only once.
        parts = list(batches(data, q.inputs, batch_size, steps))
        if steps is not None and len(parts) < steps:
            _logger.warning("Integers are chosen on little: %s.", fewer(len(parts), steps))
        data, steps = joined(parts), None
    if recipe.static:
        calibrate(
            q,
            data,
            batch_size=batch_size,
            steps=steps,
            observer=observer or chosen.observer,
            bias_correction=(
                chosen.bias_correction if bias_correction is None else bias_correction
            ),
            progress=progress,
        )
    if optimizes:
        algorithm = None if recipe.names_algorithms else chosen.algorithm
        optimize(q, data, algorithm, seed=seed, batch_size=batch_size, progress=progress)
    return q
