"""`quantize_apply`: from a marked float model to a model of quantized layers."""

import collections
import dataclasses
import itertools
import logging

import keras
from keras import layers, tree

from tfquant.quantizers import Static, WeightQuantizer
from tfquant.quantizers.families import activation_quantizer
from tfquant.registry import QuantizeRegistry, schemes
from tfquant.registry.elementwise import OutputConfig, SameGridConfig
from tfquant.registry.keras_layers import FLOAT, LINEAR
from tfquant.registry.parts import Constant, ConstantConfig
from tfquant.registry.registry import KERAS_LAYERS
from tfquant.registry.weights import WeightsConfig, matrices
from tfquant.rewrite.affine import merge_affine
from tfquant.rewrite.annotate import QuantizeAnnotate, all_layers, skip_predicate
from tfquant.rewrite.composite import readable
from tfquant.rewrite.decompose import decompose, standalone_batch_norm
from tfquant.rewrite.fold import fold_forward
from tfquant.rewrite.graph import UniqueNames, real, tensors, trace
from tfquant.rewrite.layout import cancel_permutes, delay_permutes
from tfquant.rewrite.merge import merge_clamps
from tfquant.rewrite.operations import operation_config
from tfquant.rewrite.read import is_composite
from tfquant.rewrite.unfold import becomes_others, unfold
from tfquant.rewrite.units import Unit, fuse
from tfquant.rewrite.validate import check_model
from tfquant.wrappers import CallSite, OperationLayer, Quantize, QuantizeWrapper
from tfquant.wrappers.config import copy_layer, transfer_weights

_logger = logging.getLogger("tfquant")

# Layers with weights that nobody needs to be told about.
_KNOWN = (layers.BatchNormalization, Constant, *FLOAT)


def quantize_model(
    model,
    scheme="w8a8",
    *,
    skip=(),
    registry: QuantizeRegistry | None = None,
    unknown_layers: str = "weights",
    weight_quantizer: str | None = None,
    activation_quantizer: str | None = None,
):
    """Returns a quantized copy of `model`.

    The copy is an ordinary Keras model. Its weights are quantized at once; its activations are
    when `calibrate` has seen data, and pass through unchanged until then.

    Args:
        model: Built Keras model: functional, sequential, or subclassed with a `call` that consists
            of layers and `keras.ops`. It is not changed.
        scheme: Name of a scheme (`"w8a8"`, `"w4a8"`, ...; see `tfq.SCHEMES`) or a `Scheme`.
        skip: Layers to leave float: names, layer classes, or layers.
        registry: `QuantizeRegistry`; the default knows Keras's own layers.
        unknown_layers: What becomes of layers that nobody has said how to quantize: `"weights"`
            stores their trainable weights of rank 2 or more in 8 bits and computes in float,
            `"float"` leaves them alone. A warning names them.
        weight_quantizer: What training does to the grids of weights: a name of
            `tfq.quantizers.WEIGHT_QUANTIZERS`; `None` for the scheme's own.
        activation_quantizer: What it does to those of activations: a name of
            `tfq.quantizers.ACTIVATION_QUANTIZERS`; `None` for the scheme's own.

    Returns:
        `keras.Model`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built, cannot be read, is quantized already or has weights
            that are not finite; if the scheme, a family of quantizers, `unknown_layers` or a name
            in `skip` is unknown.

    Example:

    ```python
    q = tfq.quantize_model(model, "w8a8", skip=["head"])
    tfq.calibrate(q, images)
    report = tfq.to_tflite(q, "model.tflite")
    ```
    """
    scheme = _with_families(scheme, weight_quantizer, activation_quantizer)
    model = readable(model)
    check_model(model)
    skipped = skip_predicate(model, skip)
    chosen = lambda layer: not skipped(layer)  # noqa: E731
    return _Builder(model, scheme, registry or KERAS_LAYERS, chosen, unknown_layers).build()


def quantize_apply(
    model,
    scheme="w8a8",
    *,
    registry: QuantizeRegistry | None = None,
    unknown_layers: str = "weights",
    weight_quantizer: str | None = None,
    activation_quantizer: str | None = None,
):
    """Quantizes the layers of `model` that were marked.

    Args:
        model: Model with layers marked by `quantize_annotate_layer`, or from
            `quantize_annotate_model`. It is not changed.
        scheme: Name of a scheme, or a `Scheme`.
        registry: `QuantizeRegistry`; the default knows Keras's own layers.
        unknown_layers: As in `quantize_model`.
        weight_quantizer: As in `quantize_model`.
        activation_quantizer: As in `quantize_model`.

    Returns:
        `keras.Model`, as `quantize_model` returns it.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: As `quantize_model`; and if no layer is marked.
    """
    scheme = _with_families(scheme, weight_quantizer, activation_quantizer)
    check_model(model)
    chosen = lambda layer: False  # noqa: E731
    builder = _Builder(model, scheme, registry or KERAS_LAYERS, chosen, unknown_layers)
    if not builder.marked:
        raise ValueError(
            f"No layer of '{model.name}' is marked. Mark layers with quantize_annotate_layer, or "
            "all of them with quantize_annotate_model."
        )
    return builder.build()


def _with_families(scheme, weights, activations):
    """Returns the scheme, its families of quantizers replaced by those that are not `None`."""
    chosen = {"weight_quantizer": weights, "activation_quantizer": activations}
    chosen = {key: name for key, name in chosen.items() if name is not None}
    return dataclasses.replace(schemes.get(scheme), **chosen)


class _Builder:
    """Reads a model, decides what becomes of each call, and builds the quantized model."""

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
        edges = self._edges()
        self.configs = {
            id(node): self._config(node, scheme.edge if id(node.layer) in edges else scheme)
            for node in self.graph.nodes
        }
        self._keep_residuals_float()
        self._warn_of_unknown_layers()
        self.units = fuse(
            self.graph,
            lambda node: (
                (self.configs[id(node)] is not None or self._is_lone_batch_norm(node))
                and id(node.layer) not in self.own_configs
            ),
            lambda node: id(node) in self.marked,
        )
        self.unit_of = {id(x): u for u in self.units for x in tree.flatten(u.outputs)}
        self.groups = {}
        self.unique = UniqueNames()

    def build(self):
        """Returns the quantized model."""
        self._group_steps()
        self._group_concatenations()
        self.values, self.on_grid, self.quantized, self.made = {}, {}, {}, {}
        self.points = {}
        inputs = tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=self.unique(x.name)),
            self.graph.inputs,
        )
        self._bind(self.graph.inputs, inputs)
        self._quantize_inputs()
        for unit in self.units:
            self._bind(unit.outputs, self._call(unit))
        outputs = tree.map_structure(self._output, self.graph.outputs)
        return keras.Model(inputs, outputs, name=self.graph.name)

    def _output(self, x):
        """Returns an output of the model, in the width of the scheme."""
        stored = self.on_grid.get(id(self.values[id(x)]))
        if stored is None or stored == self.scheme.activations.stored_bits:
            return self.values[id(x)]
        return self._quantize(x, None)

    # What becomes of each call.

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
        if isinstance(node.layer, keras.layers.Layer):
            config = self.registry.get_quantize_config(node.layer, scheme)
            if config is None and self.unknown_layers == "weights" and self._is_unknown(node.layer):
                return WeightsConfig.for_scheme(scheme)
            return config
        # What an operation computes from values on grids is rounded to a grid in its turn.
        outputs = tree.flatten(node.outputs)
        if self.scheme.static and len(real([*node.inputs, *outputs])) == len(node.inputs + outputs):
            return operation_config(node.layer, self.scheme.activations, len(outputs))
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

    # Grids that agree.

    def _group_steps(self):
        """Gives what an unrolled layer computes again and again one grid."""
        parts = {
            id(x.layer): x
            for model in self.graph.unfolded
            for x in model.layers
            if isinstance(x, QuantizeAnnotate)
        }
        units = [u for u in self.units if id(u.node.layer) in parts and not self._keeps_grid(u)]
        count = collections.Counter(id(unit.node.layer) for unit in units)
        for unit in units:
            if count[id(unit.node.layer)] > 1:
                for x in tree.flatten(unit.outputs):
                    self.groups[id(x)] = unit.node.clone.name

    def _group_concatenations(self):
        """Gives the branches of each concatenation one grid: it moves integers as they are."""
        for number, unit in enumerate(self.units):
            branches = real(unit.node.inputs)
            if not self._keeps_grid(unit) or len(branches) < 2:
                continue
            sources = [id(self._source(x)) for x in branches]
            names = {self.groups[key] for key in sources if key in self.groups}
            group = min(names, default=f"{unit.node.layer.name}#{number}")
            for key, name in list(self.groups.items()):
                if name in names:
                    self.groups[key] = group
            self.groups.update(dict.fromkeys(sources, group))

    def _keeps_grid(self, unit):
        return isinstance(self.configs[id(unit.node)], SameGridConfig)

    def _source(self, tensor):
        """Returns the tensor that `tensor`'s grid comes from."""
        unit = self.unit_of.get(id(tensor))
        while unit is not None and self._keeps_grid(unit) and real(unit.node.inputs):
            tensor = real(unit.node.inputs)[0]
            unit = self.unit_of.get(id(tensor))
        return tensor

    def _grid_is_fixed(self, tensor):
        """Whether the device dictates the grid of `tensor`, so that no group can change it."""
        unit = self.unit_of.get(id(self._source(tensor)))
        config = self.configs[id(unit.node)] if unit else None
        return isinstance(config, OutputConfig) and config.fixed is not None

    def _site(self, unit):
        return CallSite(unit.clamp, self.groups.get(id(tree.flatten(unit.outputs)[0])))

    def _sites(self, unit):
        """Returns the call sites of the unit's layer."""
        return [self._site(u) for u in self.units if u.node.layer is unit.node.layer]

    # Building.

    def _bind(self, old, new):
        for x, y in zip(tree.flatten(old), tree.flatten(new), strict=True):
            self.values[id(x)] = y

    def _call(self, unit: Unit):
        """Calls what stands for `unit` in the quantized model."""
        lone = self._is_lone_batch_norm(unit.node)
        config = self.configs[id(unit.node)]
        args, kwargs = self._arguments(unit)
        if config is None and not lone:
            layer = self._plain(unit.node)
            if isinstance(layer, OperationLayer):
                args, kwargs = tensors((args, kwargs)), {}
            return layer(*args, **kwargs)
        make = self._convolution_of_ones if lone else self._wrapper
        (before, wrapper, after), site = self._made_once(unit, make)
        if isinstance(wrapper.layer, OperationLayer):
            args, kwargs = tensors((args, kwargs)), {}
        if before is not None:
            args = (before(*args),)
        outputs = wrapper(*args, **kwargs, **({"call_site": site} if site else {}))
        if after is not None:
            outputs = after(outputs)
        if self.scheme.static:
            self._note_grids(config, wrapper, tensors((args, kwargs)), outputs)
        return outputs

    def _note_grids(self, config, wrapper, inputs, outputs):
        quantizers = wrapper.output_quantizers[0]
        for x, quantizer in itertools.zip_longest(tree.flatten(outputs), quantizers):
            if quantizer is not None:
                self.on_grid[id(x)] = quantizer.spec.stored_bits
            elif isinstance(config, SameGridConfig):
                self.on_grid[id(x)] = self.on_grid.get(id(next(iter(real(inputs)), None)))
            elif isinstance(config, ConstantConfig):
                self.on_grid[id(x)] = config.activations.stored_bits

    def _quantize_inputs(self):
        """Quantizes the model's inputs, if any call reads their integers, for whoever reads them.

        Also for a call of a float layer that comes first.
        """
        inputs = {id(x) for x in tree.flatten(self.graph.inputs)}
        for unit in self.units:
            if self._reads_grids(unit):
                for x in unit.node.inputs:
                    if id(x) in inputs:
                        self._argument(unit, x)

    def _reads_grids(self, unit):
        """Whether a call takes its inputs on grids."""
        config = self.configs[id(unit.node)]
        quantized = self._is_lone_batch_norm(unit.node) if config is None else True
        return self.scheme.static and quantized and not getattr(config, "reads_floats", False)

    def _arguments(self, unit):
        """Returns the arguments of a call, on grids if the call takes them so."""
        value = lambda x: self._argument(unit, x) if isinstance(x, keras.KerasTensor) else x  # noqa: E731
        return tree.map_structure(value, (unit.node.args, unit.node.kwargs))

    def _argument(self, unit, x):
        y = self.values[id(x)]
        if not (self._reads_grids(unit) and keras.backend.is_float_dtype(y.dtype)):
            return y
        several = self._keeps_grid(unit) and len(real(unit.node.inputs)) > 1
        if several and self._grid_is_fixed(x):
            return self._quantize(x, self.groups[id(self._source(x))])
        spec = getattr(self.configs[id(unit.node)], "activations", None)
        stored = self.on_grid.get(id(y))
        # A kernel reads and writes integers of one width.
        if stored is None or (spec is not None and stored != spec.stored_bits):
            return self._quantize(x, self.groups.get(id(x)), spec)
        return y

    def _quantize(self, x, group, spec=None):
        """Puts a tensor on a grid of its own: an input, what a float layer computed, or integers
        of another width.
        """
        spec = spec or self.scheme.activations
        key = id(x), group, spec.num_bits
        if key not in self.quantized:
            producer = self.graph.producer(x)
            name = f"quantize_{producer.layer.name if producer else x.name}"
            widened = id(self.values[id(x)]) in self.on_grid
            if widened:
                name = f"{name}_to_{spec.num_bits}"
                if self.on_grid[id(self.values[id(x)])] != spec.num_bits:
                    group = group and f"{group}:{spec.num_bits}"
            if group is None or group not in self.points:
                quantizer = activation_quantizer(
                    self.scheme.activation_quantizer, Static(spec), group
                )
                layer = Quantize(quantizer, name=self.unique(name))
                self.points[group] = layer
            else:
                layer = self.points[group]
            y = layer(self.values[id(x)])
            self.on_grid[id(y)] = spec.stored_bits
            self.quantized[key] = y
            if producer is None and not widened:
                # A model's input enters the device quantized, whoever reads it.
                self.values[id(x)] = y
        return self.quantized[key]

    def _made_once(self, unit, make):
        """Returns what `make` made at the first call of the unit's layer, and which call it is."""
        key = id(unit.node.layer)
        if key not in self.made:
            self.made[key] = [make(unit), 0]
        made = self.made[key]
        made[1] += 1
        return made[0], made[1] - 1

    def _wrapper(self, unit):
        """Returns the wrapper of the unit's layer, between nothing."""
        node = unit.node
        if isinstance(node.layer, keras.layers.Layer):
            layer = self._filled(node)
        else:
            layer = self._operation_layer(node)
        wrapper = QuantizeWrapper(
            layer,
            self.configs[id(node)],
            batch_norm=self._filled(unit.batch_norm) if unit.batch_norm else None,
            call_sites=self._sites(unit),
            weight_quantizer=self.scheme.weight_quantizer,
            activation_quantizer=self.scheme.activation_quantizer,
            name=self.unique(f"quant_{layer.name}"),
        )
        for variable, quantizer in wrapper.weight_quantizers:
            if isinstance(quantizer, WeightQuantizer):
                quantizer.fit(variable.value)
        return None, wrapper, None

    def _is_lone_batch_norm(self, node):
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

    def _convolution_of_ones(self, unit):
        """Returns the quantized layers that compute a batch norm of its own."""
        shape = unit.node.inputs[0].shape
        before, convolution, after = standalone_batch_norm(unit.node.layer, shape)
        norm = copy_layer(unit.node.clone, axis=-1)
        norm.build((None, None, None, shape[-1]))
        transfer_weights(unit.node.layer, norm)
        wrapper = QuantizeWrapper(
            convolution,
            self.registry.get_quantize_config(convolution, self.scheme),
            batch_norm=norm,
            call_sites=self._sites(unit),
            activation_quantizer=self.scheme.activation_quantizer,
            name=self.unique(f"quant_{unit.node.layer.name}"),
        )
        return self._mover(before, shape), wrapper, self._mover(after, shape)

    def _mover(self, layer, shape):
        if layer is None:
            return None
        layer.build(shape)
        return QuantizeWrapper(layer, SameGridConfig(), name=self.unique(f"quant_{layer.name}"))

    def _plain(self, node):
        """Returns the float layer (or operation) of a call."""
        if not isinstance(node.layer, keras.layers.Layer):
            return self._operation_layer(node)
        key = id(node.layer)
        if key not in self.made:
            self.made[key] = self._filled(node)
        return self.made[key]

    def _operation_layer(self, node):
        return OperationLayer(
            copy_layer(node.clone), node.args, node.kwargs, name=self.unique(node.layer.name)
        )

    def _filled(self, node):
        """Returns the node's copy of the layer with the layer's weights."""
        if node.clone is not node.layer:
            transfer_weights(node.layer, node.clone)
        return node.clone
