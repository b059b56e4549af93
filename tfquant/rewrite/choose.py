"""What becomes of each call of a model: taken apart, quantized by a config, or left float."""

import logging

import keras
from keras import layers, tree

from tfquant.graph.graph import real, trace
from tfquant.graph.read import is_composite
from tfquant.graph.walk import all_layers
from tfquant.layers.parts import Constant
from tfquant.passes.affine import merge_affine
from tfquant.passes.fold import fold_forward
from tfquant.passes.masks import hide_scores
from tfquant.passes.merge import merge_clamps
from tfquant.passes.permutes import cancel_permutes, delay_permutes
from tfquant.registry.keras_layers import FLOAT, LINEAR
from tfquant.registry.weights import WeightsConfig, matrices
from tfquant.rewrite.units import fuse
from tfquant.unfold.decompose import decompose
from tfquant.unfold.operations import operation_config
from tfquant.unfold.unfold import becomes_others, unfold
from tfquant.wrappers import QuantizeAnnotate

_logger = logging.getLogger("tfquant")

# Layers with weights that nobody needs to be told about.
_KNOWN = (layers.BatchNormalization, Constant, *FLOAT)


_TABLES = (layers.Embedding, layers.ReversibleEmbedding)


class Choices:
    """Reads a model and decides what becomes of each call.

    Args:
        model: Float model.
        scheme: `Scheme`.
        registry: `QuantizeRegistry`.
        chosen: Function of a layer: whether the user wants it quantized.
        unknown_layers: As of `quantize_model`.

    Attributes:
        graph: `Graph` of the calls, whole networks unfolded.
        marked: Ids of the calls that are to be quantized, if they can be.
        own_configs: Dict from the id of a layer to the config that the user gave it.
        looked_up: Ids of real tensors whose values are looked up in a table.
        configs: Dict from the id of a call to its config, `None` for one that stays float.
        units: Calls that the device computes as one.
    """

    def __init__(self, model, scheme, registry, chosen, unknown_layers):
        if unknown_layers not in ("weights", "float"):
            raise ValueError(
                f"`unknown_layers` must be 'weights' or 'float'. Received: {unknown_layers!r}."
            )
        self.scheme, self.registry, self.unknown_layers = scheme, registry, unknown_layers
        self.opened = []  # What composite layers consist of is quantized as they are.
        chosen = lambda layer, chosen=chosen: any(x is layer for x in self.opened) or chosen(layer)  # noqa: E731
        self.graph = trace(model, lambda layer: self._take_apart(layer, chosen))
        self.marked, self.own_configs = set(), {}
        for node in self.graph.nodes:
            self._unwrap(node, chosen)
        for moved, original in delay_permutes(self.graph):
            if id(original) in self.marked:
                self.marked.add(id(moved))
        cancel_permutes(self.graph)
        merge_affine(self.graph)
        merge_clamps(
            self.graph,
            lambda node: id(node) in self.marked and id(node.layer) not in self.own_configs,
        )
        fold_forward(self.graph, self._may_fold)
        self.looked_up = self._leave_ids_alone()
        edges = self._edges()
        self.configs = {
            id(node): self._config(node, scheme.edge if id(node.layer) in edges else scheme)
            for node in self.graph.nodes
        }
        if scheme.static:
            for node, config in hide_scores(
                self.graph, scheme.activations, lambda node: self.configs[id(node)]
            ):
                self.configs[id(node)] = config
                self.marked.add(id(node))
        self._keep_residuals_float()
        self._warn_of_unknown_layers()
        self.units = fuse(
            self.graph,
            lambda node: (
                (self.configs[id(node)] is not None or self.is_lone_batch_norm(node))
                and id(node.layer) not in self.own_configs
            ),
            lambda node: id(node) in self.marked,
        )

    def _take_apart(self, layer, chosen):
        marked = isinstance(layer, QuantizeAnnotate)
        if marked and layer.quantize_config is not None:
            return None
        inner = layer.layer if marked else layer
        if not (marked or chosen(inner)) or not self._is_or_becomes_quantized(inner):
            return None
        own = is_composite(inner) and self.registry.supports(inner)
        unfolded = None if own else unfold(inner, self.scheme)
        if unfolded is not None:
            opens = is_composite(inner) or isinstance(inner, (layers.RNN, layers.Bidirectional))
            return self._opening(unfolded) if opens else unfolded
        parts = decompose(inner)
        if parts is None or not marked:
            return parts
        return [(QuantizeAnnotate(part), weights) for part, weights in parts]

    def _opening(self, unfolded):
        def build(args, kwargs):
            model = unfolded(args, kwargs)
            if model is not None:
                self.opened += all_layers(model)
            return model

        return build

    def _is_or_becomes_quantized(self, layer):
        separable = type(layer) in (layers.SeparableConv1D, layers.SeparableConv2D)
        return (
            separable
            or becomes_others(layer)
            or (is_composite(layer) and not self.registry.supports(layer))
            or self.registry.get_quantize_config(layer, self.scheme) is not None
        )

    def _unwrap(self, node, chosen):
        """Takes the mark off a layer and notes it."""
        if isinstance(node.layer, QuantizeAnnotate):
            self.marked.add(id(node))
            if node.layer.quantize_config is not None:
                self.own_configs[id(node.layer.layer)] = node.layer.quantize_config
            node.layer, node.clone = node.layer.layer, node.clone.layer
        elif chosen(node.layer):
            self.marked.add(id(node))

    def _may_fold(self, norm, dense):
        """Whether a batch norm is to be folded into the dense layer behind it.

        Not where a linear layer before it takes it, nor where either is called twice.
        """
        before = self.graph.producer(norm.inputs[0])
        taken = (
            before is not None
            and type(before.layer) in LINEAR
            and id(before) in self.marked
            and len(self.graph.consumers(norm.inputs[0])) == 1
        )
        calls = [node.layer for node in self.graph.nodes]
        once = all(sum(layer is node.layer for layer in calls) == 1 for node in (norm, dense))
        return (
            once
            and not taken
            and {id(norm), id(dense)} <= self.marked
            and not {id(norm.layer), id(dense.layer)} & set(self.own_configs)
            and norm.layer.axis in (-1, 1)
            and self.registry.get_quantize_config(dense.layer, self.scheme) is not None
        )

    def _leave_ids_alone(self):
        """Leaves float what computes the numbers of rows in a table; returns the ids of those.

        `keras.Input((10,))` in front of an `Embedding` is float32: its ids have no grid.
        """
        looked_up = set()
        for node in reversed(self.graph.nodes):
            if any(id(x) in looked_up for x in tree.flatten(node.outputs)):
                if type(node.layer) in LINEAR:
                    continue
                self.marked.discard(id(node))
            elif not isinstance(node.layer, _TABLES) or node.kwargs.get("reverse"):
                continue
            looked_up.update(map(id, real(node.inputs)))
        return looked_up

    def _edges(self):
        """Returns the first and the last layer with a kernel, in the order of calls."""
        linear = [id(node.layer) for node in self.graph.nodes if type(node.layer) in LINEAR]
        return {*linear[:1], *linear[-1:]}

    def _config(self, node, scheme):
        """Returns the config of a call; `None` for one that stays float."""
        if id(node) not in self.marked:
            return None
        own = self.own_configs.get(id(node.layer))
        if own is not None:
            return own
        outputs = tree.flatten(node.outputs)
        if len(real(outputs)) < len(outputs):
            return None  # Integers and truth values have no grid.
        if isinstance(node.layer, keras.layers.Layer):
            config = self.registry.get_quantize_config(node.layer, scheme)
            if config is None and self.unknown_layers == "weights" and self._is_unknown(node.layer):
                return WeightsConfig.for_scheme(scheme)
            return config
        # What an operation computes from values on grids is rounded to a grid in its turn.
        if self.scheme.static and len(real([*node.inputs, *outputs])) == len(node.inputs + outputs):
            return operation_config(node.layer, self.scheme, len(outputs))
        return None

    def _keep_residuals_float(self):
        """Leaves sums float that only norms read, directly or through further such sums.

        The norm is float and reads the sum as it is. The residual stream of a transformer, with its
        few huge channels, is then never rounded: only what matrices multiply is.
        """
        for node in reversed(self.graph.nodes):
            outputs = tree.flatten(node.outputs)
            readers = [reader for x in outputs for reader in self.graph.consumers(x)]
            if (
                type(node.layer) is layers.Add
                and id(node.layer) not in self.own_configs
                and readers
                and not any(self.graph.is_output(x) for x in outputs)
                and all(self._is_float_residual(reader) for reader in readers)
            ):
                self.configs[id(node)] = None

    def _is_float_residual(self, node):
        is_sum = type(node.layer) is layers.Add and self.configs[id(node)] is None
        return is_sum or type(node.layer) in FLOAT

    def _is_unknown(self, layer):
        """Whether `layer` has matrices of weights, and nothing is known of its type."""
        return not (
            self.registry.supports(layer)
            or isinstance(layer, (*_KNOWN, layers.TFSMLayer))
            or not matrices(layer)
        )

    def _warn_of_unknown_layers(self):
        """Names the layers that the registry has no config for."""
        weights_only, whole = {}, {}
        for node in self.graph.nodes:
            layer, config = node.layer, self.configs[id(node)]
            if id(node) not in self.marked or not isinstance(layer, keras.layers.Layer):
                continue
            if isinstance(config, WeightsConfig):
                weights_only[layer.name] = type(layer).__name__
            elif (
                config is None
                and layer.weights
                and not self.registry.supports(layer)
                and not isinstance(layer, _KNOWN)
            ):
                whole[layer.name] = type(layer).__name__
        for found, what in (
            (
                weights_only,
                "Layers of unknown type have their weights quantized, and compute in float",
            ),
            (whole, "Layers of unknown type stay float"),
        ):
            if found:
                named = ", ".join(f"'{name}' ({kind})" for name, kind in found.items())
                _logger.warning(
                    "%s: %s. Register a QuantizeConfig for the type to say how they are quantized.",
                    what,
                    named,
                )

    def is_lone_batch_norm(self, node) -> bool:
        """Whether a call is of a batch norm that becomes a kernel of its own."""
        layer = node.layer
        if not (
            self.scheme.static
            and id(node) in self.marked
            and id(layer) not in self.own_configs
            and isinstance(layer, layers.BatchNormalization)
        ):
            return False
        rank = len(node.inputs[0].shape)
        free = sum(n is None for n in node.inputs[0].shape[1:])
        return layer.axis in (-1, rank - 1) and (rank < 5 or (rank == 5 and free < 2))
