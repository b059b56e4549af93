"""Choosing the layers to quantize before `quantize_apply` does it."""

import dataclasses

import keras

from tfquant.graph.graph import clone_graph
from tfquant.graph.walk import all_layers
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.registry.recipe import FLOAT, Recipe, Rule
from tfquant.rewrite.validate import check_model
from tfquant.wrappers import QuantizeAnnotate, QuantizeConfig
from tfquant.wrappers.annotate import inner


def quantize_annotate_layer(layer, quantize_config: QuantizeConfig | None = None):
    """Marks one layer as one to quantize.

    Use it while building a model; `quantize_apply` then quantizes the marked layers only.

    Args:
        layer: Keras layer.
        quantize_config: `QuantizeConfig` of your own, or `None` for the registry's.

    Returns:
        Layer that computes what `layer` computes.

    Raises:
        ValueError: If `layer` is a model or marked already.
        TypeError: If `layer` is no layer, or `quantize_config` no `QuantizeConfig`.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        tfq.quantize_annotate_layer(keras.layers.Conv2D(8, 3)),
        keras.layers.Flatten(),
        keras.layers.Dense(10),  # stays float
    ])
    q = tfq.quantize_apply(model)
    ```
    """
    if isinstance(layer, keras.Model):
        raise ValueError(
            f"quantize_annotate_layer expects a layer. Received: the model '{layer.name}'. Use "
            "quantize_annotate_model for a model."
        )
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"quantize_annotate_layer expects a layer. Received: {layer!r}.")
    if isinstance(layer, QuantizeAnnotate):
        raise ValueError(f"Layer '{layer.layer.name}' is marked already.")
    return QuantizeAnnotate(layer, quantize_config)


def quantize_annotate_model(model, skip=()):
    """Returns a copy of `model` in which every layer is marked as one to quantize.

    Args:
        model: Built functional or sequential model.
        skip: Layers to leave float: names (or regular expressions), layer classes, or layers.

    Returns:
        Model that computes what `model` computes.

    Raises:
        ValueError: If the model cannot be read (see `quantize_model`), or a name in `skip` is no
            layer's.
    """
    check_model(model)
    rows = skip_recipe(Recipe(), model, skip).rows(model)
    return _annotate(model, lambda layer: rows[layer].scheme is None)


def _annotate(model, skipped):
    copies = []

    def annotate(layer):
        if isinstance(layer, keras.Model):
            return _annotate(layer, skipped)
        copy = copy_layer(layer)
        if not isinstance(layer, keras.layers.Layer):
            return copy
        copies.append((layer, copy))
        if skipped(layer) or isinstance(layer, QuantizeAnnotate):
            return copy
        return QuantizeAnnotate(copy)

    annotated = clone_graph(model, annotate)
    for layer, copy in copies:
        transfer_weights(layer, copy)
    return annotated


def skip_recipe(recipe: Recipe, model, skip) -> Recipe:
    """Returns `recipe` with what `skip` names left float, whatever its rules say.

    Args:
        recipe: `Recipe`.
        model: The model that it is for.
        skip: As of `quantize_model`. Classes and layers that the model does not have are no error.

    Raises:
        ValueError: If a name is no layer's of `model`, nested models included.
        TypeError: If `skip` is no list of names, classes and layers.
    """
    if isinstance(skip, str) or not isinstance(skip, (list, tuple, set, frozenset)):
        raise TypeError(f"`skip` must be a list. Received: {skip!r}.")
    for entry in skip:
        if not isinstance(entry, (str, type, keras.layers.Layer)):
            raise TypeError(
                "`skip` must hold names of layers, layer classes or layers. Received: "
                f"{entry!r} of type {type(entry).__name__}."
            )
    has = lambda entry: isinstance(entry, str) or any(_is(x, entry) for x in all_layers(model))  # noqa: E731
    selectors = [
        (lambda layer, entry=entry: _is(layer, entry)) if not isinstance(entry, str) else entry
        for entry in skip
        if has(entry)
    ]
    rules = Recipe().skip(*selectors).rules
    return dataclasses.replace(recipe, rules=(*rules, *recipe.rules))


def _is(layer, entry):
    """Whether `layer`, or what its mark is on, is the layer `entry` or of that class."""
    return any(
        x is entry or (isinstance(entry, type) and isinstance(x, entry))
        for x in (layer, inner(layer))
    )


def marked_recipe(recipe: Recipe, model) -> Recipe:
    """Returns the recipe that the marks on layers of `model` amount to.

    Args:
        recipe: `Recipe` that says what marked layers have; a config given with a mark comes first.
        model: Model with marked layers.

    Raises:
        ValueError: If no layer is marked.
    """
    rules = []
    for layer, row in recipe.rows(model).items():
        if isinstance(layer, QuantizeAnnotate):
            row = dataclasses.replace(row, config=layer.quantize_config or row.config)
            rules.append(Rule(lambda x, layer=layer: x is layer.layer, row))
    if not rules:
        raise ValueError(
            f"No layer of '{model.name}' is marked. Mark layers with quantize_annotate_layer, or "
            "all of them with quantize_annotate_model."
        )
    return Recipe(FLOAT, tuple(rules))
