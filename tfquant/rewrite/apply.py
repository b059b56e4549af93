"""`quantize_apply`: from a marked float model to a model of quantized layers."""

import dataclasses
import itertools

import keras
from keras import tree

from tfquant import devices
from tfquant.graph.graph import UniqueNames, real, tensors
from tfquant.graph.subclassed import readable
from tfquant.graph.walk import all_layers
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.layers.integers import truthful
from tfquant.passes.precision import TO_FLOAT32_WEIGHTS, policy, with_float32_weights
from tfquant.quantizers import Static, WeightQuantizer
from tfquant.quantizers.families import activation_quantizer
from tfquant.registry import QuantizeRegistry, schemes
from tfquant.registry.elementwise import SameGridConfig, TableConfig
from tfquant.registry.parts import ConstantConfig
from tfquant.registry.registry import KERAS_LAYERS
from tfquant.rewrite.agree import Agreement
from tfquant.rewrite.annotate import skip_predicate
from tfquant.rewrite.choose import Choices
from tfquant.rewrite.units import Unit
from tfquant.rewrite.validate import check_model
from tfquant.unfold.decompose import standalone_batch_norm
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
    scheme = _with_families(scheme, weight_quantizer, activation_quantizer, device)
    model = readable(model)
    check_model(model)
    skipped, given = skip_predicate(model, skip), all_layers(model)
    model = with_float32_weights(model)
    pairs = zip(given, all_layers(model), strict=True)
    floats = {id(layer) for original, layer in pairs if skipped(original)}
    chosen = lambda layer: id(layer) not in floats  # noqa: E731
    registry = registry or KERAS_LAYERS
    return _Builder(Choices(model, scheme, registry, chosen, unknown_layers)).build()


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
        scheme: Name of a scheme, or a `Scheme`.
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
    scheme = _with_families(scheme, weight_quantizer, activation_quantizer, device)
    check_model(model)
    model = with_float32_weights(model)
    chosen = lambda layer: False  # noqa: E731
    choices = Choices(model, scheme, registry or KERAS_LAYERS, chosen, unknown_layers)
    if not choices.marked:
        raise ValueError(
            f"No layer of '{model.name}' is marked. Mark layers with quantize_annotate_layer, or "
            "all of them with quantize_annotate_model."
        )
    return _Builder(choices).build()


def _with_families(scheme, weights, activations, device):
    """Returns the scheme, families of quantizers and device replaced by those that are given."""
    device = devices.get(device).name
    chosen = {"weight_quantizer": weights, "activation_quantizer": activations, "device": device}
    chosen = {key: name for key, name in chosen.items() if name is not None}
    return dataclasses.replace(schemes.get(scheme), **chosen)


class _Builder:
    """Builds the quantized model.

    Args:
        choices: `Choices`.
    """

    def __init__(self, choices: Choices):
        self.device = choices.scheme.device
        self.choices, self.agreement = choices, Agreement(choices)
        self.scheme, self.registry = choices.scheme, choices.registry
        self.graph, self.units, self.configs = choices.graph, choices.units, choices.configs
        self.unique = UniqueNames()
        self.values, self.on_grid, self.quantized, self.made = {}, {}, {}, {}
        self.points = {}

    def build(self):
        """Returns the quantized model."""
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

    def _bind(self, old, new):
        for x, y in zip(tree.flatten(old), tree.flatten(new), strict=True):
            self.values[id(x)] = y

    def _call(self, unit: Unit):
        """Calls what stands for `unit` in the quantized model."""
        lone = self.choices.is_lone_batch_norm(unit.node)
        config = self.configs[id(unit.node)]
        args, kwargs = self._arguments(unit)
        if config is None and not lone:
            layer = self._plain(unit.node, args, kwargs)
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
        quantized = self.choices.is_lone_batch_norm(unit.node) if config is None else True
        as_it_comes = getattr(config, "reads_floats", False) or isinstance(config, TableConfig)
        return self.scheme.static and quantized and not as_it_comes

    def _arguments(self, unit):
        """Returns the arguments of a call, on grids if the call takes them so."""
        value = lambda x: self._argument(unit, x) if isinstance(x, keras.KerasTensor) else x  # noqa: E731
        return tree.map_structure(value, (unit.node.args, unit.node.kwargs))

    def _argument(self, unit, x):
        y = self.values[id(x)]
        if not (self._reads_grids(unit) and keras.backend.is_float_dtype(y.dtype)):
            return y
        if id(x) in self.choices.looked_up:
            return y
        several = self.agreement.keeps_grid(unit) and len(real(unit.node.inputs)) > 1
        if several and self.agreement.is_fixed(x):
            return self._quantize(x, self.agreement.groups[id(self.agreement.source(x))])
        spec = getattr(self.configs[id(unit.node)], "activations", None)
        stored = self.on_grid.get(id(y))
        # A kernel reads and writes integers of one width.
        if stored is None or (spec is not None and stored != spec.stored_bits):
            return self._quantize(x, self.agreement.groups.get(id(x)), spec)
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
                layer = Quantize(quantizer, device=self.device, name=self.unique(name))
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
            device=self.device,
            name=self.unique(f"quant_{layer.name}"),
        )
        for variable, quantizer in wrapper.weight_quantizers:
            if isinstance(quantizer, WeightQuantizer):
                quantizer.fit(variable.value)
        return None, wrapper, None

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
            device=self.device,
            name=self.unique(f"quant_{unit.node.layer.name}"),
        )
        return self._mover(before, shape), wrapper, self._mover(after, shape)

    def _mover(self, layer, shape):
        if layer is None:
            return None
        layer.build(shape)
        name = self.unique(f"quant_{layer.name}")
        return QuantizeWrapper(layer, SameGridConfig(), device=self.device, name=name)

    def _plain(self, node, args, kwargs):
        """Returns the float layer (or operation) of a call."""
        if not isinstance(node.layer, keras.layers.Layer):
            return self._operation_layer(node)
        key = id(node.layer)
        if key not in self.made:
            self.made[key] = truthful(self._filled(node), args, kwargs)
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

    def _site(self, unit):
        return CallSite(unit.clamp, self.agreement.groups.get(id(tree.flatten(unit.outputs)[0])))

    def _sites(self, unit):
        """Returns the call sites of the unit's layer."""
        return [self._site(u) for u in self.units if u.node.layer is unit.node.layer]
