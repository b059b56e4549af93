"""What becomes of each call of a model: taken apart, quantized by a config, or left float."""

import dataclasses
import logging

import keras
from keras import layers, tree

from tfquant import devices
from tfquant.configs.elementwise import VectorConfig
from tfquant.configs.linear import LinearConfig
from tfquant.configs.weights import WeightsConfig, matrices
from tfquant.graph.graph import Graph, Node, real, trace
from tfquant.graph.states import carried_states
from tfquant.layers import known
from tfquant.layers.parts import Constant
from tfquant.reading.own import is_composite
from tfquant.registry.keras_layers import CLAMPS, LINEAR, NORMS, weights_config
from tfquant.registry.operations import operation_config
from tfquant.unfold.decompose import decompose
from tfquant.unfold.unfold import becomes_others, unfold
from tfquant.wrappers import QuantizeAnnotate
from tfquant.wrappers.annotate import inner

_logger = logging.getLogger("tfquant")

# Layers with weights that nobody needs to be told about.
_KNOWN = (layers.BatchNormalization, Constant, *NORMS)

_TABLES = (layers.Embedding, known.ReversibleEmbedding)

# What a batch norm becomes that no kernel takes; see `passes.ones`.
ONES = layers.DepthwiseConv2D(1, data_format="channels_last", name="ones")


def choose(model, rows: dict, registry, unknown_layers: str, device: str) -> Graph:
    """Reads a model and notes on each call what becomes of it.

    Args:
        model: Float model.
        rows: Dict from each layer of the model to its `Row`.
        registry: `QuantizeRegistry`.
        unknown_layers: As of `quantize_model`.
        device: Name of the device whose operators decide what layers become.

    Returns:
        `Graph` of the calls, whole networks unfolded; `marked`, `own`, `scheme`, `algorithm` and
        `config` of its nodes are set.
    """
    if unknown_layers not in ("weights", "float"):
        raise ValueError(
            f"`unknown_layers` must be 'weights' or 'float'. Received: {unknown_layers!r}."
        )
    rows = {layer: _on_device(row, device) for layer, row in rows.items()}
    graph = trace(model, _Unfolding(rows, registry).take_apart)
    for node in graph.nodes:
        _unwrap(node, rows)
    graph.looked_up, graph.states = _leave_ids_alone(graph), carried_states(model)
    edges = _edges(graph)
    for node in filter(lambda node: node.marked, graph.nodes):
        row = rows[node.origin]
        node.algorithm = row.algorithm
        node.scheme = row.scheme.edge if row.edges and node.layer in edges else row.scheme
        if node.config is None:
            node.config = _config(node, registry, unknown_layers)
        if node.config is None and _is_lone_kernel(node):
            node.config = registry.get_quantize_config(ONES, node.scheme)
    _warn_of_unknown_layers(graph, registry)
    return graph


def _on_device(row, device):
    if row.scheme and not row.scheme.static and not devices.get(device).dequantizes:
        raise ValueError(
            f"device='{device}' takes integer weights where activations are integers as well: "
            f"scheme 'w8a8', 'w4a8' or 'w8a16'. Received: scheme '{row.scheme.name}'."
        )
    scheme = row.scheme and dataclasses.replace(row.scheme, device=device)
    return dataclasses.replace(row, scheme=scheme)


class _Unfolding:
    """Takes layers apart that are quantized, or become such that are."""

    def __init__(self, rows, registry):
        self.rows, self.registry = rows, registry

    def take_apart(self, layer, origin):
        """Returns what stands for `layer`; see `trace`."""
        row, marked = self.rows[origin], isinstance(layer, QuantizeAnnotate)
        own, layer = _own_config(layer, origin, row), inner(layer)
        if row.scheme is None:
            return None
        if own is not None:
            return _without_activation(layer, own) if layer is inner(origin) else None
        if not self._is_or_becomes_quantized(layer, row.scheme):
            return None
        whole = is_composite(layer) and self.registry.supports(layer)
        unfolded = None if whole else unfold(layer, row.scheme)
        if unfolded is not None:
            return unfolded
        parts = decompose(layer)
        if parts is None or not marked:
            return parts
        return [(QuantizeAnnotate(part), weights) for part, weights in parts]

    def _is_or_becomes_quantized(self, layer, scheme):
        separable = type(layer) in (layers.SeparableConv1D, layers.SeparableConv2D)
        return (
            separable
            or becomes_others(layer)
            or (is_composite(layer) and not self.registry.supports(layer))
            or self.registry.get_quantize_config(layer, scheme) is not None
        )


def _without_activation(layer, own):
    """Takes off a layer of an own config the activation that its kernel does not compute itself.

    Not where the config quantizes what is behind the activation, as one of the user's class does.
    """
    function = getattr(layer, "activation", None)
    apart = isinstance(own, LinearConfig) or function in CLAMPS
    parts = decompose(layer) if apart and type(layer) in LINEAR else None
    if parts is None:
        return None
    (bare, weights), *behind = parts
    marked = [(QuantizeAnnotate(part), weights) for part, weights in behind]
    return [(QuantizeAnnotate(bare, own), weights), *marked]


def _own_config(layer, origin, row):
    """Returns the config that a layer was given by hand, `None` for the registry's."""
    given = layer.quantize_config if isinstance(layer, QuantizeAnnotate) else None
    return row.config if given is None and layer is origin else given


def _unwrap(node: Node, rows):
    """Takes the mark off a layer and notes it."""
    row, layer = rows[node.origin], node.layer
    node.marked = row.scheme is not None
    node.config = _own_config(layer, node.origin, row) if node.marked else None
    node.own = node.config is not None
    node.part = layer is not node.origin and node.clone is not layer
    if isinstance(layer, QuantizeAnnotate):
        node.unrolled = node.part
        if layer.norm is not None:
            node.norms = ((layer.norm, row.scheme.norms),)
        node.layer, node.clone = layer.layer, node.clone.layer


def _leave_ids_alone(graph) -> set:
    """Leaves float what computes the numbers of rows in a table; returns the tensors of those.

    `keras.Input((10,))` in front of an `Embedding` is float32: its ids have no grid.
    """
    looked_up = set()
    for node in reversed(graph.nodes):
        if looked_up.intersection(tree.flatten(node.outputs)):
            if type(node.layer) in LINEAR:
                continue
            node.marked, node.config = False, None
        elif not isinstance(node.layer, _TABLES) or node.kwargs.get("reverse"):
            continue
        looked_up.update(real(node.inputs))
    return looked_up


def _edges(graph):
    """Returns the first and the last layer with a kernel, in the order of calls."""
    linear = [node.layer for node in graph.nodes if type(node.layer) in LINEAR]
    return {*linear[:1], *linear[-1:]}


def _config(node, registry, unknown_layers):
    """Returns the config of a call; `None` for one that stays float."""
    config = _config_of_kind(node, registry, unknown_layers)
    if isinstance(config, VectorConfig):
        device = devices.get(node.scheme.device)
        why = config.why_not_of(node.layer, node.inputs[0].shape, device)
        if why:
            _logger.warning("'%s' stays float: %s.", node.layer.name, why)
            return None
    return config


def _config_of_kind(node, registry, unknown_layers):
    """Returns the config of a call by the type of its layer."""
    layer, scheme, outputs = node.layer, node.scheme, tree.flatten(node.outputs)
    if len(real(outputs)) < len(outputs):
        return None  # Integers and truth values have no grid.
    if isinstance(layer, keras.layers.Layer):
        config = registry.get_quantize_config(layer, scheme)
        if config is None and unknown_layers == "weights" and _is_unknown(layer, registry):
            return weights_config(scheme)
        return config
    # What an operation computes from values on grids is rounded to a grid in its turn.
    if scheme.static and len(real([*node.inputs, *outputs])) == len(node.inputs + outputs):
        return operation_config(layer, scheme, len(outputs), node.args, node.kwargs)
    return None


def _is_lone_kernel(node):
    """Whether a call is of a batch norm that can be a kernel of its own."""
    if not (node.scheme.static and isinstance(node.layer, layers.BatchNormalization)):
        return False
    rank = len(node.inputs[0].shape)
    free = sum(n is None for n in node.inputs[0].shape[1:])
    return node.layer.axis in (-1, rank - 1) and (rank < 5 or (rank == 5 and free < 2))


def _is_unknown(layer, registry):
    """Whether `layer` has matrices of weights, and nothing is known of its type."""
    known = registry.supports(layer) or isinstance(layer, (*_KNOWN, layers.TFSMLayer))
    return not known and bool(matrices(layer))


def _warn_of_unknown_layers(graph, registry):
    """Names the layers that the registry has no config for."""
    weights_only, whole = {}, {}
    for node in graph.nodes:
        layer = node.layer
        if not node.marked or not isinstance(layer, keras.layers.Layer):
            continue
        if isinstance(node.config, WeightsConfig) and not node.own:
            weights_only[layer.name] = type(layer).__name__
        elif (
            node.config is None
            and layer.weights
            and not registry.supports(layer)
            and not isinstance(layer, _KNOWN)
        ):
            whole[layer.name] = type(layer).__name__
    for found, what in (
        (weights_only, "Layers of unknown type have their weights quantized, and compute in float"),
        (whole, "Layers of unknown type stay float"),
    ):
        if found:
            named = ", ".join(f"'{name}' ({kind})" for name, kind in found.items())
            _logger.warning(
                "%s: %s. Register a QuantizeConfig for the type to say how they are quantized.",
                what,
                named,
            )
