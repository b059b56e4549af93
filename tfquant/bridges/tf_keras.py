"""`from_tf_keras`: from a model of Keras 2 to the same of Keras 3."""

import inspect
import json
import pathlib

import h5py
import keras
import numpy as np

# Kinds of layers that Keras 2 makes of operations of TensorFlow: they hold code, no settings.
OPERATIONS = ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "ClassMethod")

# Where a description refers to calls of layers.
NODES = {"inbound_nodes", "input_layers", "output_layers"}

MODELS = {"Functional": keras.Model, "Sequential": keras.Sequential}

# Settings that Keras 3 does not know everywhere, and values with which a layer computes the same.
SAME_WITHOUT = {"groups": (1,), "time_major": (False,), "implementation": (0, 1, 2)}


def from_tf_keras(model):
    """Returns the model of Keras 3 that computes what a model of `tf_keras` computes.

    Args:
        model: Built functional or sequential model of Keras 2 (`tf_keras`), or the path of an `.h5`
            file that Keras 2 wrote. It is not changed.

    Returns:
        `keras.Model` with the same layers, names and weights, not compiled.

    Raises:
        TypeError: If `model` is neither.
        ValueError: If it has layers that Keras 3 does not have, which the error names, or the file
            is none of Keras 2.

    Example:

    ```python
    q = tfq.quantize_model(tfq.from_tf_keras(old_model))
    ```
    """
    if isinstance(model, (str, pathlib.Path)):
        return rebuild(*_stored(pathlib.Path(model)))
    return rebuild(config_of(model), weights_of(model))


def config_of(model) -> dict:
    """Returns class and settings of a model of Keras 2, as plain values.

    Raises:
        TypeError: If it is no such model.
    """
    if isinstance(model, keras.Model) or not hasattr(model, "to_json"):
        raise TypeError(
            "A model of Keras 2 is expected, such as tf_keras.Model. Received: "
            f"{type(model).__module__}.{type(model).__name__}."
        )
    try:
        return json.loads(model.to_json())
    except NotImplementedError as error:
        raise TypeError(
            f"A functional or sequential model is expected. Received: '{model.name}', a subclass."
        ) from error


def weights_of(model) -> dict:
    """Returns a dict from names of layers to dicts from names of their variables to arrays.

    Names of variables are their last part, `kernel` of `dense/kernel:0`; where a layer has several
    of a name, their number is behind it. A nested model has a dict of its layers.
    """
    return {layer.name: _values(layer) for layer in model.layers}


def _values(layer):
    if getattr(layer, "layers", None) and hasattr(layer, "to_json"):
        return weights_of(layer)
    values = {}
    for variable in layer.weights:
        name = variable.name.rpartition("/")[2].partition(":")[0]
        values[name if name not in values else f"{name}_{len(values)}"] = variable.numpy()
    return values


def _stored(path) -> tuple[dict, dict]:
    """Returns description and weights of the model in an `.h5` file."""
    try:
        with h5py.File(path, "r") as file:
            config = json.loads(file.attrs["model_config"])
            groups = file["model_weights"]
            found = {
                name: {key: np.asarray(group[key]) for key in group.attrs["weight_names"]}
                for name, group in groups.items()
            }
    except FileNotFoundError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"An .h5 file of a whole model of Keras 2 is expected. Received: '{path}' ({error})."
        ) from error
    return config, _by_layer(config, found)


def _by_layer(config, found) -> dict:
    """Returns the weights of each layer, nested models as dicts of their layers."""
    weights = {}
    for layer in config["config"]["layers"]:
        name, values = layer["config"]["name"], found.get(layer["config"]["name"], {})
        if "layers" in layer["config"]:
            inside = [x["config"]["name"] for x in layer["config"]["layers"]]
            parts = {x: {k: v for k, v in values.items() if x in k.split("/")} for x in inside}
            values = _by_layer(layer, parts)
        weights[name] = values
    return weights


def _of_keras_3(config):
    """Returns a description without what Keras 2 wrote and Keras 3 does not read."""
    if isinstance(config, list):
        return [_of_keras_3(x) for x in config]
    if not isinstance(config, dict):
        return config
    config = {key: _of_keras_3(value) for key, value in config.items()}
    if "layers" in config:
        nested = {x["config"]["name"] for x in config["layers"] if "layers" in x["config"]}
        for holder in (*config["layers"], config):
            for key in NODES & holder.keys():
                holder[key] = _without_own_call(holder[key], nested)
    kind, settings = config.get("class_name"), config.get("config")
    if not isinstance(kind, str) or not isinstance(settings, dict):
        return config
    if kind == "BatchNormalization" and isinstance(settings.get("axis"), list):
        (settings["axis"],) = settings["axis"]
    if kind != "InputLayer":
        settings.pop("batch_input_shape", None)
    layer_type = getattr(keras.layers, kind, None)
    if layer_type is not None:
        known = inspect.signature(layer_type).parameters
        for key, same in SAME_WITHOUT.items():
            if key not in known and settings.get(key, "none") in same:
                del settings[key]
    return config


def _without_own_call(nodes, nested):
    """Returns references to calls, `[layer, number of the call, ...]`, as Keras 3 counts them.

    To Keras 2 the first call of a nested model is the one that made it.
    """
    if not isinstance(nodes, list) or not nodes:
        return nodes
    if isinstance(nodes[0], str):
        own = nodes[0] in nested and nodes[1] > 0
        return [nodes[0], nodes[1] - own, *nodes[2:]]
    return [_without_own_call(x, nested) for x in nodes]


def rebuild(config: dict, weights: dict):
    """Returns the model of Keras 3 of what `config_of` and `weights_of` returned.

    Raises:
        ValueError: If Keras 3 cannot make it, or a weight does not fit.
    """
    strange = [x["config"]["name"] for x in _layers(config) if x["class_name"] in OPERATIONS]
    if strange:
        raise ValueError(
            "Layers with settings are expected, which Keras 3 can make again. Received operations "
            f"of TensorFlow: {', '.join(map(repr, strange))}. Call layers in their place."
        )
    try:
        with keras.saving.custom_object_scope(MODELS):
            model = keras.models.model_from_json(json.dumps(_of_keras_3(config)))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        why = str(error).partition("Full object config")[0].rpartition("encountered: ")[2].strip()
        raise ValueError(f"Keras 3 cannot make '{config['config']['name']}': {why}") from error
    shape = config["config"].get("build_input_shape")
    if not model.built and shape:
        model.build(tuple(shape))
    _fill(model, weights)
    return model


def _layers(config):
    """Yields the descriptions of the layers of a model and of the models in it."""
    for layer in config["config"].get("layers", ()):
        yield layer
        if "layers" in layer["config"]:
            yield from _layers(layer)


def _fill(model, weights):
    for layer in model.layers:
        values = weights.get(layer.name, {})
        if isinstance(layer, keras.Model):
            _fill(layer, values)
        elif layer.weights or values:
            _give(layer, list(values.values()))


def _give(layer, values):
    expected = [tuple(w.shape) for w in layer.weights]
    if [np.shape(x) for x in values] != expected:
        raise ValueError(
            f"The weights of '{layer.name}' must have the shapes {expected}. Received: "
            f"{[np.shape(x) for x in values]}."
        )
    layer.set_weights(values)
