"""Half precision is for the arithmetic of training: weights, and what is converted, are float32."""

import contextlib

import keras

from tfquant.graph.graph import clone_graph
from tfquant.graph.walk import all_layers
from tfquant.layers.copy import copy_layer

NARROW = ("bfloat16", "float16")
MIXED = tuple(f"mixed_{name}" for name in NARROW)
TO_FLOAT32 = dict.fromkeys(NARROW + MIXED, "float32")
TO_FLOAT32_WEIGHTS = dict(zip(NARROW, MIXED, strict=True))


def in_float32(model):
    """Returns a model like `model` whose layers compute in float32.

    Args:
        model: Functional model.

    Returns:
        `model` itself where no layer has a policy such as `"mixed_bfloat16"` or `"bfloat16"`, else
        a copy with the same weights.
    """
    if not any(_dtype_of(layer, "compute_dtype") in NARROW for layer in model.layers):
        return model
    copy = _with_policies(model, TO_FLOAT32)
    for name in ("calibration_samples", "correction"):  # What calibration left on it.
        setattr(copy, name, getattr(model, name, None))
    return copy


def with_float32_weights(model, rows: dict):
    """Returns a model like `model` with float32 weights: training moves them by less than bfloat16
    can hold, and the steps of their grids are no such numbers.

    Args:
        model: Functional or sequential model.
        rows: Dict from its layers, nested ones included, to what is known of them.

    Returns:
        `model` and `rows` themselves where no layer has a policy such as `"bfloat16"`, else a copy
        in which that is `"mixed_bfloat16"`, and what is known of its layers.
    """
    given = all_layers(model)
    if not any(_dtype_of(layer, "variable_dtype") in NARROW for layer in given):
        return model, rows
    copy = _with_policies(model, TO_FLOAT32_WEIGHTS)
    # A copy has the same layers in the same order.
    pairs = zip(given, all_layers(copy), strict=True)
    return copy, {layer: rows[original] for original, layer in pairs}


@contextlib.contextmanager
def policy(names):
    """Inside it, new layers have the policy that `names` gives for the user's, if it gives one.

    Args:
        names: Dict from policies to policies: `TO_FLOAT32` or `TO_FLOAT32_WEIGHTS`.
    """
    given = keras.config.dtype_policy()
    keras.config.set_dtype_policy(names.get(given.name, given))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(given)


def _dtype_of(layer, kind):
    """Returns a dtype of a layer, that of the layer inside for a wrapper."""
    inner = getattr(layer, "layer", None)
    return getattr(layer if inner is None else inner, kind, None)


def _with_policies(model, names):
    """Returns a copy of `model` whose policies have other names."""
    copy_of = lambda layer: copy_layer(layer, **_renamed(layer.get_config(), names))  # noqa: E731
    copy = clone_graph(model, copy_of)
    copy.set_weights(model.get_weights())
    return copy


def _renamed(config, names):
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            name = config["config"]["name"]
            return names.get(name, config)
        return {key: _renamed(value, names) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_renamed(value, names) for value in config)
    return names.get(config, config) if isinstance(config, str) else config
