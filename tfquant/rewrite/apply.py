"""`quantize_apply`: from a marked float model to a model of quantized layers."""

import logging

import keras
from keras import layers, tree

from tfquant.quantizers import Static
from tfquant.registry import QuantizeRegistry, schemes
from tfquant.registry.elementwise import OutputConfig, SameGridConfig
from tfquant.registry.registry import KERAS_LAYERS
from tfquant.rewrite.annotate import QuantizeAnnotate, skip_predicate
from tfquant.rewrite.decompose import decompose, standalone_batch_norm
from tfquant.rewrite.graph import trace
from tfquant.rewrite.units import Unit, fuse
from tfquant.rewrite.validate import check_model
from tfquant.wrappers import CallSite, OperationLayer, Quantize, QuantizeWrapper

_logger = logging.getLogger("tfquant")


def quantize_model(model, scheme="w8a8", *, skip=(), registry: QuantizeRegistry | None = None):
    """Returns a quantized copy of `model`.

    The copy is an ordinary Keras model. Its weights are quantized at once; its activations are
    when `calibrate` has seen data, and pass through unchanged until then.

    Args:
        model: Built functional or sequential model. It is not changed.
        scheme: Name of a scheme (`"w8a8"`, `"w4a8"`, ...; see `tfq.SCHEMES`) or a `Scheme`.
        skip: Layers to leave float: names, layer classes, or layers.
        registry: `QuantizeRegistry`; the default knows Keras's own layers.

    Returns:
        `keras.Model`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built, is subclassed, is quantized already or has weights
            that are not finite; if the scheme or a name in `skip` is unknown.

    Example:

    ```python
    q = tfq.quantize_model(model, "w8a8", skip=["head"])
    tfq.calibrate(q, images)
    report = tfq.to_tflite(q, "model.tflite")
    ```
    """
    scheme = schemes.get(scheme)
    check_model(model)
    skipped = skip_predicate(model, skip)
    chosen = lambda layer: not skipped(layer)  # noqa: E731
    return _Builder(model, scheme, registry or KERAS_LAYERS, chosen).build()


def quantize_apply(model, scheme="w8a8", *, registry: QuantizeRegistry | None = None):
    """Quantizes the layers of `model` that were marked.

    Args:
        model: Model with layers marked by `quantize_annotate_layer`, or from
            `quantize_annotate_model`. It is not changed.
        scheme: Name of a scheme, or a `Scheme`.
        registry: `QuantizeRegistry`; the default knows Keras's own layers.

    Returns:
        `keras.Model`, as `quantize_model` returns it.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: As `quantize_model`; and if no layer is marked.
    """
    scheme = schemes.get(scheme)
    check_model(model)
    builder = _Builder(model, scheme, registry or KERAS_LAYERS, lambda layer: False)
    if not builder.marked:
        raise ValueError(
            f"No layer of '{model.name}' is marked. Mark layers with quantize_annotate_layer, or "
            "all of them with quantize_annotate_model."
        )
    return builder.build()


class _Builder:
    """Reads a model, decides what becomes of each call, and builds the quantized model."""

    def __init__(self, model, scheme, registry, chosen):
        self.scheme, self.registry = scheme, registry
        self.graph = trace(model, lambda layer: self._take_apart(layer, chosen))
        self.marked, self.configs = set(), {}
        for node in self.graph.nodes:
            self._unwrap(node, chosen)
        self.units = fuse(self.graph, lambda node: id(node) in self.marked)
        self.names = set()

    def build(self):
        """Returns the quantized model."""
        self._choose_configs()
        self.unit_of = {id(x): u for u in self.units for x in tree.flatten(u.outputs)}
        self._group_concatenations()
        self.values, self.on_grid, self.quantized, self.made = {}, {}, {}, {}
        inputs = tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
            self.graph.inputs,
        )
        self._bind(self.graph.inputs, inputs)
        for unit in self.units:
            self._bind(unit.outputs, self._call(unit))
        outputs = tree.map_structure(lambda x: self.values[id(x)], self.graph.outputs)
        return keras.Model(inputs, outputs, name=self.graph.name)

    def _take_apart(self, layer, chosen):
        marked = isinstance(layer, QuantizeAnnotate)
        if marked and layer.quantize_config is not None:
            return None
        inner = layer.layer if marked else layer
        if not (marked or chosen(inner)) or (
            self.registry.get_quantize_config(inner, self.scheme) is None
            and type(inner) not in (layers.SeparableConv1D, layers.SeparableConv2D)
        ):
            return None
        parts = decompose(inner)
        if parts is None or not marked:
            return parts
        return [(QuantizeAnnotate(part), weights) for part, weights in parts]

    def _unwrap(self, node, chosen):
        """Takes the mark off a layer and notes it."""
        if isinstance(node.layer, QuantizeAnnotate):
            self.marked.add(id(node))
            if node.layer.quantize_config is not None:
                self.configs[id(node.layer.layer)] = node.layer.quantize_config
            node.layer, node.clone = node.layer.layer, node.clone.layer
        elif chosen(node.layer):
            self.marked.add(id(node))
        if isinstance(node.layer, OperationLayer):
            return
        if not isinstance(node.layer, keras.layers.Layer):
            operation = OperationLayer(node.clone, name=node.layer.name)
            node.clone = operation

    def _choose_configs(self):
        """Finds the config of each unit; a unit without one stays float."""
        self.unit_configs, unknown = {}, {}
        for unit in self.units:
            layer = unit.node.layer
            config = None
            if id(unit.node) in self.marked:
                config = self.configs.get(id(layer))
                if config is None:
                    config = self.registry.get_quantize_config(layer, self.scheme)
                    if config is None and layer.weights and not self.registry.supports(layer):
                        unknown[layer.name] = type(layer).__name__
            self.unit_configs[id(unit)] = config
        unknown = {name: kind for name, kind in unknown.items() if kind != "BatchNormalization"}
        if unknown:
            named = ", ".join(f"'{name}' ({kind})" for name, kind in unknown.items())
            _logger.warning(
                "Layers of unknown type stay float: %s. Register a QuantizeConfig for the type to "
                "quantize them.",
                named,
            )

    def _group_concatenations(self):
        """Gives the branches of each concatenation one grid: it moves integers as they are."""
        self.groups = {}
        for unit in self.units:
            if not self._same_grid(unit) or len(unit.node.inputs) < 2:
                continue
            sources = [id(self._source(x)) for x in unit.node.inputs]
            names = {self.groups[key] for key in sources if key in self.groups}
            group = min(names, default=unit.node.layer.name)
            for key, name in list(self.groups.items()):
                if name in names:
                    self.groups[key] = group
            self.groups.update(dict.fromkeys(sources, group))

    def _same_grid(self, unit):
        return isinstance(self.unit_configs[id(unit)], SameGridConfig)

    def _source(self, tensor):
        """Returns the tensor that `tensor`'s grid comes from."""
        unit = self.unit_of.get(id(tensor))
        while unit is not None and self._same_grid(unit):
            tensor = unit.node.inputs[0]
            unit = self.unit_of.get(id(tensor))
        return tensor

    def _grid_is_fixed(self, tensor):
        """Whether the device dictates the grid of `tensor`, so that no group can change it."""
        unit = self.unit_of.get(id(self._source(tensor)))
        config = self.unit_configs[id(unit)] if unit else None
        return isinstance(config, OutputConfig) and config.fixed is not None

    def _bind(self, old, new):
        for x, y in zip(tree.flatten(old), tree.flatten(new), strict=True):
            self.values[id(x)] = y

    def _call(self, unit: Unit):
        """Calls what stands for `unit` in the quantized model."""
        config = self.unit_configs[id(unit)]
        node = unit.node
        standalone = self._standalone(unit)
        if standalone is None and config is None:
            args, kwargs = self._arguments(unit, quantized=False)
            return self._plain(node)(*args, **kwargs)
        args, kwargs = self._arguments(unit, quantized=True)
        if standalone is not None:
            outputs = standalone(*args)
        else:
            wrapper, call_site = self._wrapper(unit, config)
            site = {"call_site": call_site} if call_site else {}
            outputs = wrapper(*args, **kwargs, **site)
        if self.scheme.static:
            for x in tree.flatten(outputs):
                self.on_grid[id(x)] = True
        return outputs

    def _arguments(self, unit, quantized):
        """Returns the arguments of a call, on grids if the call is quantized."""
        several = self._same_grid(unit) and len(unit.node.inputs) > 1

        def value(x):
            if not isinstance(x, keras.KerasTensor):
                return x
            y = self.values[id(x)]
            if not (quantized and self.scheme.static and keras.backend.is_float_dtype(y.dtype)):
                return y
            if several and self._grid_is_fixed(x):
                return self._quantize(x, self.groups[id(self._source(x))])
            return y if id(y) in self.on_grid else self._quantize(x, self.groups.get(id(x)))

        return tree.map_structure(value, (unit.node.args, unit.node.kwargs))

    def _quantize(self, x, group):
        """Puts a tensor on a grid of its own: an input, or what a float layer computed."""
        key = id(x), group
        if key not in self.quantized:
            producer = self.graph.producer(x)
            name = f"quantize_{producer.layer.name if producer else x.name}"
            quantizer = Static(self.scheme.activations, group=group)
            y = Quantize(quantizer, name=self._unique(name))(self.values[id(x)])
            self.on_grid[id(y)] = True
            self.quantized[key] = y
            if producer is None:
                # A model's input enters the device quantized, whoever reads it.
                self.values[id(x)] = y
        return self.quantized[key]

    def _wrapper(self, unit, config):
        """Returns the wrapper of the unit's layer and the index of this call of it."""
        key = id(unit.node.layer)
        if key in self.made:
            wrapper, calls = self.made[key]
            self.made[key] = wrapper, calls + 1
        else:
            layer = self._filled(unit.node)
            norm = self._filled(unit.batch_norm) if unit.batch_norm else None
            sites = [u for u in self.units if u.node.layer is unit.node.layer]
            wrapper = QuantizeWrapper(
                layer,
                config,
                batch_norm=norm,
                call_sites=[CallSite(u.clamp, self._group(u)) for u in sites],
                name=self._unique(f"quant_{layer.name}"),
            )
            self.made[key] = wrapper, 1
            calls = 0
        return wrapper, calls

    def _group(self, unit):
        return self.groups.get(id(tree.flatten(unit.outputs)[0]))

    def _standalone(self, unit):
        """Returns a function that computes a batch norm of its own as a convolution, or `None`."""
        layer = unit.node.layer
        if not (
            self.scheme.static
            and id(unit.node) in self.marked
            and id(layer) not in self.configs
            and type(layer) is layers.BatchNormalization
        ):
            return None
        rank = len(unit.node.inputs[0].shape)
        if rank not in (2, 3, 4) or layer.axis not in (-1, rank - 1):
            return None
        key = id(layer)
        if key not in self.made:
            self.made[key] = self._convolution_of_ones(unit, rank), 0
        (before, wrapper, after), calls = self.made[key]
        self.made[key] = self.made[key][0], calls + 1

        def call(x):
            site = {"call_site": calls} if calls else {}
            x = wrapper(before(x) if before else x, **site)
            return after(x) if after else x

        return call

    def _convolution_of_ones(self, unit, rank):
        """Returns the quantized layers that compute a batch norm of its own."""
        layer = unit.node.layer
        before, convolution, after = standalone_batch_norm(layer, rank)
        shape = unit.node.inputs[0].shape
        for mover in (before, after):
            if mover is not None:
                mover.build(shape)
        sites = [u for u in self.units if u.node.layer is layer]
        wrapper = QuantizeWrapper(
            convolution,
            self.registry.get_quantize_config(convolution, self.scheme),
            batch_norm=self._filled(unit.node),
            call_sites=[CallSite(u.clamp, self._group(u)) for u in sites],
            name=self._unique(f"quant_{layer.name}"),
        )
        movers = [
            mover
            and QuantizeWrapper(mover, SameGridConfig(), name=self._unique(f"quant_{mover.name}"))
            for mover in (before, after)
        ]
        return movers[0], wrapper, movers[1]

    def _plain(self, node):
        """Returns the float layer of a call."""
        key = id(node.layer)
        if key not in self.made:
            layer = self._filled(node)
            self.made[key] = layer, 0
        return self.made[key][0]

    def _filled(self, node):
        """Returns the node's copy of the layer with the layer's weights."""
        layer = node.clone
        if layer is not node.layer and getattr(node.layer, "weights", None):
            layer.set_weights(node.layer.get_weights())
        return layer

    def _unique(self, name):
        """Returns `name`, or `name_1`, ... where a nested model brought the name before."""
        candidate, count = name, 0
        while candidate in self.names:
            count += 1
            candidate = f"{name}_{count}"
        self.names.add(candidate)
        return candidate
