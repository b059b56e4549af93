"""From a graph on which stands what becomes of each call to a model of quantized layers."""

import keras
from keras import tree

from tfquant.graph.graph import Graph, UniqueNames, tensors
from tfquant.layers.copy import copy_layer
from tfquant.layers.integers import truthful
from tfquant.quantizers import WeightQuantizer
from tfquant.rewrite.model import QuantizedModel
from tfquant.wrappers import CallSite, OperationLayer, Quantize, QuantizeWrapper


def build(graph: Graph, recipe) -> QuantizedModel:
    """Returns the quantized model of a graph.

    Args:
        graph: `Graph` on whose nodes stands what becomes of them.
        recipe: `Recipe` that the model is to know.
    """
    return _Builder(graph).build(recipe)


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
            kwargs = {name: x for name, x in kwargs.items() if name not in _settings(node)}
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
            call_sites=[CallSite(call.clamp, call.group, _settings(call)) for call in calls],
            weight_quantizer=node.scheme.weight_quantizer,
            activation_quantizer=node.scheme.activation_quantizer,
            device=node.scheme.device,
            algorithm=node.algorithm,
            norms=node.norms,
            name=self.unique(f"quant_{node.alias or layer.name}"),
        )
        for variable, quantizer in wrapper.weight_quantizers:
            if isinstance(quantizer, WeightQuantizer):
                quantizer.fit(variable.value)
        return wrapper


def _settings(node) -> dict:
    """Returns the keyword arguments that are no tensors, where others are.

    Keras takes no mixture of both among the arguments that a layer hands on.
    """
    plain = isinstance(node.layer, keras.layers.Layer) and not isinstance(node.layer, Quantize)
    if not plain or not tensors(node.kwargs):
        return {}
    given = {name: x for name, x in node.kwargs.items() if not tensors(x)}
    given.pop("training", None)  # The wrapper's own.
    return given
