"""`from_tfmot`: from a model that the TensorFlow Model Optimization Toolkit trained."""

import copy
import dataclasses
import itertools

import numpy as np
from keras import ops

from tfquant.bridges.tf_keras import config_of, rebuild, weights_of
from tfquant.graph.walk import all_layers
from tfquant.numerics import QuantParams
from tfquant.rewrite import quantize_model
from tfquant.wrappers import Quantize, QuantizeWrapper

WRAPPERS = ("QuantizeWrapper", "QuantizeWrapperV2")

# Configs of the default 8-bit scheme, and the one of layers that it leaves alone.
CONFIGS = ("Default8Bit", "NoOpQuantizeConfig")

# Layers that train only, and what takes them off.
STRIPPED = {
    "PruneLowMagnitude": "tfmot.sparsity.keras.strip_pruning",
    "ClusterWeights": "tfmot.clustering.keras.strip_clustering",
    "QuantizeAnnotate": "tfmot.quantization.keras.quantize_apply",
}

# Activations that kernels compute, as Keras 2 describes them.
FUSED = ("linear", "relu", "relu6")

# Weights and their ranges that a wrapper has.
KERNELS = ("kernel", "depthwise_kernel")


@dataclasses.dataclass
class Trained:
    """What a model of tfmot holds beside its float model.

    Attributes:
        config: Description of the float model of Keras 2.
        weights: Weights of its layers.
        ranges: Dict from names of layers to `(low, high)` of their outputs.
        kernels: Dict from names of layers to `(low, high)` of their kernels, arrays.
    """

    config: dict
    weights: dict
    ranges: dict = dataclasses.field(default_factory=dict)
    kernels: dict = dataclasses.field(default_factory=dict)


def from_tfmot(model, *, device: str | None = None):
    """Returns the quantized model of one that tfmot's `quantize_apply` or `quantize_model` made.

    Ranges are those that training has found, integers of the weights those of tfmot's own file:

        step = (high - low) / 254,    q = round(kernel / step)

    Args:
        model: Functional or sequential model of `tf_keras`, quantized in tfmot's default 8-bit
            scheme and trained; or a pair of what `config_of` and `weights_of` of
            `tfquant.bridges.tf_keras` return for it. It is not changed.
        device: As of `quantize_model`.

    Returns:
        `keras.Model` of Keras 3, calibrated by the trained ranges, as `calibrate` leaves one. It
        can be trained on and converted.

    Raises:
        TypeError: If `model` is no model of Keras 2.
        ValueError: If nothing in it is quantized, a layer has another scheme, or a range that a
            grid needs is missing; the error names the layer.

    Example:

    ```python
    old = tfmot.quantization.keras.quantize_model(tf_keras_model)
    old.fit(...)
    q = tfq.from_tfmot(old)
    tfq.to_tflite(q, "model.tflite")
    ```
    """
    pair = isinstance(model, tuple)
    config, weights = model if pair else (config_of(model), weights_of(model))
    trained = strip(config, weights)
    if not trained.ranges:
        raise ValueError(
            "A model quantized by tfmot is expected. Received: "
            f"'{config['config'].get('name')}' without ranges. Give it to tfq.from_tf_keras."
        )
    plain = rebuild(trained.config, trained.weights)
    q = quantize_model(plain, "w8a8", weight_quantizer="abs_max", device=device)
    _give_ranges(q, trained)
    _give_kernels(q, trained)
    return q


def strip(config: dict, weights: dict) -> Trained:
    """Takes tfmot's layers off the description of a model; see `from_tfmot`."""
    config = copy.deepcopy(config)
    found = Trained(config, {})
    names, removed, kept = {}, {}, []
    for entry in config["config"]["layers"]:
        kind, name = entry["class_name"], entry["config"]["name"]
        values = weights.get(name, {})
        if kind == "QuantizeLayer":
            source = _sources(entry)
            removed[name] = source
            low, high = (float(values[f"{name}_{end}"]) for end in ("min", "max"))
            found.ranges[source or ""] = low, high
        elif kind in STRIPPED:
            raise ValueError(
                f"A {kind} must be taken off first, by {STRIPPED[kind]}. Received: '{name}'."
            )
        elif kind in WRAPPERS:
            inner = _unwrapped(entry, values, found)
            names[name] = inner["config"]["name"]
            kept.append(inner)
        else:
            found.weights[name] = values
            kept.append(entry)
    config["config"]["layers"] = kept
    resolve = lambda name: names.get(removed.get(name, name), removed.get(name, name))  # noqa: E731
    for entry in kept:
        if "inbound_nodes" in entry:
            entry["inbound_nodes"] = _renamed(entry["inbound_nodes"], resolve)
    for key in ("input_layers", "output_layers"):
        if key in config["config"]:
            config["config"][key] = _renamed(config["config"][key], resolve)
    return found


def _sources(entry):
    """Returns the name of the layer in front of one, `None` in a sequential model."""
    nodes = entry.get("inbound_nodes")
    return nodes[0][0][0] if nodes else None


def _unwrapped(entry, values, found):
    """Returns the description of the layer in a wrapper, and notes weights and ranges."""
    settings = entry["config"]
    inner = dict(settings["layer"])
    inner["config"] = dict(inner["config"])
    name, scheme = inner["config"]["name"], settings["quantize_config"]["class_name"]
    if not scheme.rpartition(">")[2].startswith(CONFIGS):
        raise ValueError(
            "Layers in tfmot's default 8-bit scheme are expected. Received: "
            f"'{name}' with a {scheme}."
        )
    for key in ("inbound_nodes", "name"):
        if key in entry:
            inner[key] = entry[key] if key != "name" else name
    activation = inner["config"].get("activation")
    if isinstance(activation, dict) and activation["class_name"] == "QuantizeAwareActivation":
        inside = activation["config"]["activation"]
        none = isinstance(inside, dict) and inside["class_name"] == "NoOpActivation"
        inner["config"]["activation"] = "linear" if none else inside
    for kernel in KERNELS:
        if f"{kernel}_min" in values:
            found.kernels[name] = values[f"{kernel}_min"], values[f"{kernel}_max"]
    # What a kernel rounds lies in front of an activation that it does not compute itself.
    fused = inner["config"].get("activation", "linear") in FUSED
    for place in ("output", "post_activation" if fused else "pre_activation"):
        if f"{place}_min" in values:
            found.ranges[name] = float(values[f"{place}_min"]), float(values[f"{place}_max"])
    own = {
        key: value
        for key, value in values.items()
        if key != "optimizer_step" and not key.endswith(("_min", "_max"))
    }
    found.weights[name] = own
    return inner


def _renamed(nodes, resolve):
    """Returns nested lists with other names of layers in them."""
    if isinstance(nodes, str):
        return resolve(nodes)
    if isinstance(nodes, list):
        return [_renamed(x, resolve) for x in nodes]
    return nodes


def _give_ranges(q, trained):
    """Gives each grid of activations the range that tfmot found for the tensor."""
    readers = _readers(trained.config)
    for layer in all_layers(q):
        if isinstance(layer, Quantize):
            grids, name = [layer.quantizer], ""
            bounds = _input_range(trained)
        elif isinstance(layer, QuantizeWrapper):
            grids = [x for site in layer.output_quantizers for x in site if x is not None]
            name = layer.layer.name
            bounds = _range_of(layer, trained.ranges, readers)
        else:
            continue
        for grid in grids:
            if not hasattr(grid, "set_params") or grid.calibrated:
                continue
            if bounds is None:
                raise ValueError(f"tfmot has found no range for what '{name or layer.name}' gives.")
            grid.set_params(_params(*bounds))


def _input_range(trained):
    """Returns the range of the model's input, `None` where tfmot has none or several."""
    entries = trained.config["config"]["layers"]
    inputs = [x["config"]["name"] for x in entries if x["class_name"] == "InputLayer"]
    found = [trained.ranges[name] for name in (*inputs, "") if name in trained.ranges]
    return found[0] if len(found) == 1 else None


def _readers(config) -> dict:
    """Returns the names of the layers that read the output of each layer."""
    entries = config["config"]["layers"]
    if not any("inbound_nodes" in entry for entry in entries):
        names = [entry["config"]["name"] for entry in entries]
        return {name: [reader] for name, reader in itertools.pairwise(names)}
    readers = {}
    for entry in entries:
        for node in entry["inbound_nodes"]:
            for source in node:
                readers.setdefault(source[0], []).append(entry["config"]["name"])
    return readers


def _range_of(wrapper, ranges, readers):
    """Returns the range of what a wrapper computes: a layer, a batch norm and a clamp behind it."""
    name = wrapper.layer.name
    if name not in ranges and wrapper.batch_norm is not None:
        name = wrapper.batch_norm.name
    if name not in ranges and any(site.clamp for site in wrapper.call_sites):
        (name, *others) = readers.get(name, [name])
        name = None if others else name
    return ranges.get(name)


def _params(low, high) -> QuantParams:
    """Returns the grid that TensorFlow's fake quantization has for a range, from -128."""
    low, high = np.float32(min(low, 0)), np.float32(max(high, 0))
    scale = np.float32((high - low) / np.float32(255))
    return QuantParams(float(scale), float(np.clip(np.round(-low / scale), 0, 255) - 128))


def _give_kernels(q, trained):
    """Gives weights the integers of tfmot."""
    for wrapper in all_layers(q):
        name = wrapper.layer.name if isinstance(wrapper, QuantizeWrapper) else None
        if name not in trained.kernels:
            continue
        ((variable, quantizer),) = wrapper.weight_quantizers
        low, high = (np.asarray(x, np.float32) for x in trained.kernels[name])
        steps = (high - low) / np.float32(254)
        kernel = ops.convert_to_numpy(variable)
        q_kernel = np.clip(np.rint(kernel / steps), -127, 127)
        if steps.size == kernel.shape[-1] and quantizer.scale_shape[-1] == steps.size:
            steps = steps.reshape(-1)
        wrapper.give_integers(q_kernel, np.broadcast_to(steps, quantizer.scale_shape), 0)
