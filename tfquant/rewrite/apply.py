"""`quantize_model` and `quantize_apply`: from a float model to a model of quantized layers."""

import keras
from keras import tree

from tfquant import devices
from tfquant.graph.graph import Graph, UniqueNames, tensors
from tfquant.graph.subclassed import readable
from tfquant.graph.walk import all_layers
from tfquant.layers.copy import copy_layer
from tfquant.layers.integers import truthful
from tfquant.passes import PASSES
from tfquant.passes.precision import TO_FLOAT32_WEIGHTS, policy, with_float32_weights
from tfquant.quantizers import WeightQuantizer
from tfquant.registry import QuantizeRegistry
from tfquant.registry.recipe import Recipe
from tfquant.registry.registry import KERAS_LAYERS
from tfquant.rewrite.annotate import marked_recipe, skip_recipe
from tfquant.rewrite.choose import choose
from tfquant.rewrite.grids import place_grids
from tfquant.rewrite.model import QuantizedModel
from tfquant.rewrite.validate import check_model
from tfquant.wrappers import CallSite, OperationLayer, Quantize, QuantizeWrapper


@policy(TO_FLOAT32_WEIGHTS)
def quantize_model(
    model,
    scheme="w8a8",
    *,
    skip=(),
    registry: QuantizeRegistry | None = None,
    unknown_layers: str = "weights",
    weight_quantizer: str | None = None,
    activation_quantizer: str | None = None,
    device: str | None = None,
):
    """Returns a quantized copy of `model`.

    The copy is an ordinary Keras model. Its weights are quantized at once; its activations are
    when `calibrate` has seen data, and pass through unchanged until then.

    Args:
        model: Built Keras model: functional, sequential, or subclassed with a `call` that consists
            of layers and `keras.ops`. It is not changed.
        scheme: Name of a scheme (`"w8a8"`, `"w4a8"`, ...; see `tfq.SCHEMES`), a `Scheme`, or a
            `Recipe` of several.
        skip: Layers to leave float, whatever the recipe says: names (or regular expressions), layer
            classes, or layers.
        registry: `QuantizeRegistry`; the default knows Keras's own layers.
        unknown_layers: What becomes of layers that nobody has said how to quantize: `"weights"`
            stores their trainable weights of rank 2 or more in 8 bits and computes in float,
            `"float"` leaves them alone. A warning names them.
        weight_quantizer: What training does to the grids of weights: a name of
            `tfq.quantizers.WEIGHT_QUANTIZERS`; `None` for the scheme's own.
        activation_quantizer: What it does to those of activations: a name of
            `tfq.quantizers.ACTIVATION_QUANTIZERS`; `None` for the scheme's own.
        device: What inference simulates, to the last integer: `"litert"` (LiteRT on x86-64),
            `"litert_arm"` (on ARM64) or `"litert_reference"` (its reference kernels); `None` for
            LiteRT on the processor at hand.

    Returns:
        `keras.Model`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built, cannot be read, is quantized already or has weights
            that are not finite; if the scheme, a family of quantizers, `unknown_layers`, the device
            or a name in `skip` is unknown.

    Example:

    ```python
    q = tfq.quantize_model(model, "w8a8", skip=["head"])
    tfq.calibrate(q, images)
    report = tfq.to_tflite(q, "model.tflite")
    ```
    """
    recipe = Recipe.of(scheme).with_families(weight_quantizer, activation_quantizer)
    model = readable(model)
    check_model(model)
    recipe = skip_recipe(recipe, model, skip)
    return _quantized(model, recipe, device, registry, unknown_layers)


@policy(TO_FLOAT32_WEIGHTS)
def quantize_apply(
    model,
    scheme="w8a8",
    *,
    registry: QuantizeRegistry | None = None,
    unknown_layers: str = "weights",
    weight_quantizer: str | None = None,
    activation_quantizer: str | None = None,
    device: str | None = None,
):
    """Quantizes the layers of `model` that were marked.

    Args:
        model: Model with layers marked by `quantize_annotate_layer`, or from
            `quantize_annotate_model`. It is not changed.
        scheme: Name of a scheme, a `Scheme`, or a `Recipe`, of which marked layers have their row.
        registry: `QuantizeRegistry`; the default knows Keras's own layers.
        unknown_layers: As in `quantize_model`.
        weight_quantizer: As in `quantize_model`.
        activation_quantizer: As in `quantize_model`.
        device: As in `quantize_model`.

    Returns:
        `keras.Model`, as `quantize_model` returns it.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: As `quantize_model`; and if no layer is marked.
    """
    recipe = Recipe.of(scheme).with_families(weight_quantizer, activation_quantizer)
    check_model(model)
    recipe = marked_recipe(recipe, model)
    return _quantized(model, recipe, device, registry, unknown_layers)


def _quantized(model, recipe, device, registry, unknown_layers):
    """Returns a quantized copy of a checked model.

    Args:
        model: Float model.
        recipe: `Recipe` that the copy will know.
        device: As of `quantize_model`.
        registry: As of `quantize_model`.
        unknown_layers: Likewise.
    """
    known, rows = recipe.resolved(model), recipe.on_device(devices.get(device).name).rows(model)
    given, model = all_layers(model), with_float32_weights(model)
    # A copy has the same layers in the same order.
    rows = {copy: rows[layer] for layer, copy in zip(given, all_layers(model), strict=True)}
    graph = choose(model, rows, registry or KERAS_LAYERS, unknown_layers)
    for rewrite in PASSES:
        rewrite(graph)
    place_grids(graph)
    return _Builder(graph).build(known)


class _Builder:
    """Builds the quantized model call by call: a wrapper for each layer that has a config.

    Args:
        graph: `Graph` on whose nodes stands what becomes of them.
    """

    def __init__(self, graph: Graph):
        self.graph, self.unique = graph, UniqueNames()
        self.made, self.sites = {}, {}

    def build(self, recipe) -> QuantizedModel:
        """Returns the quantized model, which knows its `recipe`."""
        inputs = self.graph.new_inputs()
        for x in tree.flatten(inputs):
            self.unique(x.name)
        outputs = self.graph.run(tree.flatten(inputs), self._call)
        return QuantizedModel(inputs, outputs, name=self.graph.name, recipe=recipe)

    def _call(self, node, args, kwargs):
        """Calls what stands for `node` in the quantized model."""
        if node.layer not in self.made or not isinstance(node.layer, keras.layers.Layer):
            self.made[node.layer] = self._layer(node, args, kwargs)
        layer = self.made[node.layer]
        inner = layer.layer if isinstance(layer, QuantizeWrapper) else layer
        if isinstance(inner, OperationLayer):
            args, kwargs = tensors((args, kwargs)), {}
        if node.config is not None:
            site = self.sites[node.layer] = self.sites.get(node.layer, -1) + 1
            kwargs = {**kwargs, "call_site": site} if site else kwargs
        return layer(*args, **kwargs)

    def _layer(self, node, args, kwargs):
        """Returns the layer that stands for that of `node`, for all of its calls."""
        if isinstance(node.layer, Quantize):
            return node.layer
        if isinstance(node.layer, keras.layers.Layer):
            layer = node.filled()
        else:
            layer = OperationLayer(
                copy_layer(node.clone), node.args, node.kwargs, name=self.unique(node.layer.name)
            )
        if node.config is not None:
            return self._wrapper(node, layer)
        return layer if isinstance(layer, OperationLayer) else truthful(layer, args, kwargs)

    def _wrapper(self, node, layer):
        calls = self.graph.calls(node.layer)
        wrapper = QuantizeWrapper(
            layer,
            node.config,
            batch_norm=node.batch_norm and node.batch_norm.filled(),
            call_sites=[CallSite(call.clamp, call.group) for call in calls],
            weight_quantizer=node.scheme.weight_quantizer,
            activation_quantizer=node.scheme.activation_quantizer,
            device=node.scheme.device,
            name=self.unique(f"quant_{node.alias or layer.name}"),
        )
        for variable, quantizer in wrapper.weight_quantizers:
            if isinstance(quantizer, WeightQuantizer):
                quantizer.fit(variable.value)
        return wrapper
