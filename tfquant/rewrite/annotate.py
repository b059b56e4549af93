"""Choosing the layers to quantize before `quantize_apply` does it."""

import difflib

import keras

from tfquant.graph.graph import clone_graph
from tfquant.graph.walk import all_layers
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.rewrite.validate import check_model
from tfquant.wrappers import QuantizeAnnotate, QuantizeConfig


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
        skip: Layers to leave float: names, layer classes, or layers.

    Returns:
        Model that computes what `model` computes.

    Raises:
        ValueError: If the model cannot be read (see `quantize_model`), or a name in `skip` is no
            layer's.
    """
    check_model(model)
    return _annotate(model, skip_predicate(model, skip))


def _annotate(model, skipped):
    copies = {}

    def annotate(layer):
        if isinstance(layer, keras.Model):
            return _annotate(layer, skipped)
        copy = copy_layer(layer)
        if not isinstance(layer, keras.layers.Layer):
            return copy
        copies[id(layer)] = layer, copy
        if skipped(layer) or isinstance(layer, QuantizeAnnotate):
            return copy
        return QuantizeAnnotate(copy)

    annotated = clone_graph(model, annotate)
    for layer, copy in copies.values():
        transfer_weights(layer, copy)
    return annotated


def skip_predicate(model, skip):
    """Returns the function of a layer that says whether `skip` names it.

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
    names = {entry for entry in skip if isinstance(entry, str)}
    types = tuple(entry for entry in skip if isinstance(entry, type))
    objects = [entry for entry in skip if isinstance(entry, keras.layers.Layer)]
    known = [layer.name for layer in all_layers(model)]
    for name in sorted(names):
        if name not in known:
            close = difflib.get_close_matches(name, known, 3) or known[:8]
            raise ValueError(
                f"`skip` names a layer that '{model.name}' does not have. Received: {name!r}. "
                f"Did you mean one of {close}?"
            )
    matches = lambda layer: (  # noqa: E731
        layer.name in names or isinstance(layer, types) or any(layer is x for x in objects)
    )
    skipped = set()
    for layer in all_layers(model):
        if matches(layer):
            inside = all_layers(layer) if isinstance(layer, keras.Model) else []
            skipped.update(map(id, [layer, *inside]))
    return lambda layer: id(layer) in skipped
