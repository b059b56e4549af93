"""From a quantized model to what every converter starts from: a float model, and a table."""

import dataclasses
import itertools

import keras
import numpy as np
from keras import ops, tree

from tfquant.configs.elementwise import SameGridConfig
from tfquant.configs.linear import LinearConfig
from tfquant.devices import Device
from tfquant.graph.graph import UniqueNames, clone_graph, real, tensors
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.layers.parts import Constant
from tfquant.layers.plain import Barrier, PlainSum
from tfquant.quantizers import Grid, Quantizer, grid_of, on_grid
from tfquant.registry.keras_layers import LINEAR, clamp_of
from tfquant.rewrite.validate import check_finite, check_is_model
from tfquant.wrappers import (
    LoweredKernel,
    OperationLayer,
    Quantize,
    QuantizeWrapper,
)

# Operations that end where a number says.
_CLAMPS = frozenset({"Clip", "Maximum", "Minimum", "Relu", "Relu6"})


@dataclasses.dataclass(eq=False)
class Point:
    """What a quantized layer computes.

    Attributes:
        name: Name of the layer.
        tensor: KerasTensor of the float model.
        grid: `Grid` whose parameters are numbers, or `None` for a float activation.
    """

    name: str
    tensor: object
    grid: Grid | None


@dataclasses.dataclass(eq=False)
class LoweredUnit:
    """One call of a quantized layer.

    Attributes:
        name: Name of the wrapped layer.
        layer: `QuantizeWrapper` or `Quantize`.
        args: Positional arguments of the call; tensors are KerasTensors of the float model.
        kwargs: Keyword arguments, likewise.
        outputs: List of KerasTensors of the float model.
        kernels: Its quantized weights.
        dynamic: Whether the device quantizes its input when it runs.
        bias: See `Lowering`.
    """

    name: str
    layer: object
    args: tuple
    kwargs: dict
    outputs: list
    kernels: tuple[LoweredKernel, ...] = ()
    dynamic: bool = False
    bias: np.ndarray | None = None

    @property
    def output_quantizers(self) -> list:
        """The quantizer of each output, `None` where it has none of its own."""
        if isinstance(self.layer, Quantize):
            return [self.layer.quantizer]
        quantizers = self.layer.output_quantizers[self.kwargs.get("call_site", 0)]
        return quantizers or [None] * len(self.outputs)

    @property
    def inputs(self) -> list:
        """KerasTensors among the arguments."""
        return tensors((self.args, self.kwargs))


@dataclasses.dataclass(eq=False)
class Lowered:
    """The pair that converters start from.

    Attributes:
        model: Float functional model: batch norm folded, weights on the integer grid.
        points: What the quantized layers compute, in order.
        units: Calls of quantized layers, likewise.
        float_layers: Names and types of layers that stayed float.
        weights_only: Names and types of layers of which only the weights are quantized.
        norms: Names of the parts of norms that calibration left float, and of those norms.
    """

    model: keras.Model
    points: list[Point]
    units: list[LoweredUnit]
    float_layers: dict[str, str]
    weights_only: dict[str, str]
    norms: dict[str, str]

    @property
    def device(self) -> Device:
        """The device that the quantized model simulates."""
        return self.units[0].layer.device


def lower(model) -> Lowered:
    """Takes a quantized model apart into a float model and a table of parameters.

    Args:
        model: Calibrated model from `quantize_model` or `quantize_apply`.

    Returns:
        `Lowered`.

    Raises:
        TypeError: If it is no Keras model.
        ValueError: If the model is not quantized, an activation has no grid yet, or weights are
            not finite, as after training that diverged.
    """
    check_is_model(model)
    for layer in model.layers:
        check_finite(layer)
    points, units, float_layers, weights_only, norms, copies = {}, [], {}, {}, {}, {}
    unique = UniqueNames()
    bare, within = _Bare(), set()  # `within`: what parts of one float norm hand to each other.
    neutral = set()  # Pairs of a constant and of what all its values are.

    def note(name, x, grid):
        on_grid(x, grid)
        points.setdefault(x, Point(name, x, grid))

    def call(layer, *args, **kwargs):
        if isinstance(layer, Quantize):
            (x,) = args
            if not layer.quantizes:
                return x
            grid = _numbers(layer.quantizer)
            y = bare.shut_each([x])[0] if grid_of(x) is not None else x
            y = _within(y, grid)
            points.pop(y, None)  # Of a layer that computes in float.
            note(layer.name, y, grid)
            bare.note_moved([x], [y])
            units.append(LoweredUnit(layer.name, layer, args, {}, [y]))
            return y
        if isinstance(layer, QuantizeWrapper) and layer.in_float:
            norms[layer.layer.name] = layer.norms[0][0]
            settings = layer.call_sites[kwargs.get("call_site", 0)].settings
            kwargs = {**settings, **_own(layer, kwargs)}
            layer = layer.layer
        if isinstance(layer, QuantizeWrapper):
            outputs, unit = _lower_wrapper(layer, args, dict(kwargs), unique, bare)
            units.append(unit)
            bare.note(unit, kwargs.get("call_site", 0))
            if layer.quantize_config.reads_floats:
                weights_only[unit.name] = type(layer.layer).__name__
            for x, grid in zip(unit.outputs, _output_grids(layer, unit), strict=True):
                note(unit.name, x, grid)
            return outputs
        if not isinstance(layer, keras.layers.Layer):
            return _plain(copy_layer(layer), args, unique)(*args, **kwargs)
        if layer.name not in norms:
            float_layers[layer.name] = type(layer).__name__
        if layer.name not in copies:
            copies[layer.name] = _plain(copy_layer(layer, name=unique(layer.name)), args, unique)
        idle = isinstance(layer, (keras.layers.Identity, keras.layers.Dropout))
        part = layer.name in norms
        apart = args if idle else bare.shut(args, within if part else ())
        if isinstance(layer, OperationLayer):
            apart = layer.without_poles(apart, [grid_of(x) for x in args])
        kept = _kept_by_neutral(layer, apart, neutral) if part else None
        if kept is None:
            outputs = copies[layer.name](*apart, **kwargs)
        else:
            outputs = keras.layers.Identity(name=unique(f"{layer.name}__kept"))(kept)
        if isinstance(layer, Constant):
            values = ops.convert_to_numpy(layer.values)
            neutral.update((outputs, x) for x in (0, 1) if (values == x).all())
        within.update(tensors(outputs) if part else ())
        if idle:
            bare.note_moved(args, [outputs])
        else:
            bare.note_float(outputs)
        if isinstance(copies[layer.name], keras.layers.Layer):
            transfer_weights(layer, copies[layer.name])
        return outputs

    lowered = clone_graph(model, lambda layer: layer, call)
    if not units:
        raise ValueError(
            f"A model from tfq.quantize_model is expected. Received: '{model.name}', which has no "
            "quantized layers: it is another model, or its scheme takes none of its layers (one "
            "without 'a8' or 'a16' takes kernels alone)."
        )
    return Lowered(lowered, list(points.values()), units, float_layers, weights_only, norms)


class _Bare:
    """Tensors behind which no converter would stop: of kernels without a clamp, of what is combined
    with constants, of differences, which it squares, of float layers."""

    def __init__(self):
        self.tensors, self.constants, self.numbers = set(), set(), {}
        self.barriers = itertools.count()

    def note(self, unit, call_site):
        """Notes the outputs of a call, if they are bare."""
        if isinstance(unit.layer.layer, Constant):
            self.constants.update(unit.outputs)
        config = unit.layer.quantize_config
        kernel = isinstance(config, LinearConfig) and not unit.layer.call_sites[call_site].clamp
        constant = any(x in self.constants for x in unit.inputs)
        if kernel or constant or config.reads_floats or _is(unit.layer.layer, "Subtract"):
            self.note_float(unit.outputs)
        elif isinstance(config, SameGridConfig):
            self.note_moved(unit.inputs, unit.outputs)

    def note_moved(self, inputs, outputs):
        """Notes the outputs of what computes nothing, if an input is bare."""
        if any(x in self.tensors for x in inputs):
            self.note_float(outputs)

    def note_float(self, outputs):
        """Notes the outputs of a float layer."""
        floats = [x for x in tree.flatten(outputs) if keras.backend.is_float_dtype(x.dtype)]
        self.tensors.update(floats)

    def draws_in(self, layer, args):
        """Whether a converter moves what stands in front of `layer` into its constants."""
        constant = any(x in self.constants for x in tensors(args))
        return constant or type(layer) is keras.layers.Dense

    def _is_bare(self, x):
        return isinstance(x, keras.KerasTensor) and x in self.tensors

    def shut(self, args, but=()):
        """Returns `args` with a `Barrier` behind each bare tensor among them `but` some."""
        shut = lambda x: self._barrier(x) if self._is_bare(x) and x not in but else x  # noqa: E731
        return tree.map_structure(shut, args)

    def _barrier(self, x, number=0):
        return Barrier(number, name=f"barrier__{next(self.barriers)}")(x)

    def shut_each(self, args):
        """Returns `args`, each tensor behind a `Barrier` that no other call of a layer shares."""

        def shut(x):
            if not isinstance(x, keras.KerasTensor):
                return x
            self.numbers[x] = self.numbers.get(x, 0) + 1
            return self._barrier(x, self.numbers[x])

        return tree.map_structure(shut, args)


def _plain(layer, args, unique):
    """Returns a layer, or operation, in a form that the converter takes at any batch size."""
    operation = layer.operation if isinstance(layer, OperationLayer) else layer
    summed = _is(layer, "Add") and len(tensors(args)) == 2
    if not summed or tree.flatten(args) != tensors(args):
        return layer
    if isinstance(operation, keras.layers.Layer):
        return PlainSum(name=layer.name)
    return lambda *pair: PlainSum(name=unique(f"{operation.name}__sum"))(pair)


def _kept_by_neutral(layer, args, neutral):
    """Returns the tensor that zeros are added to, or ones multiplied with; `None` for others.

    A converter leaves nothing of that, and no tensor to be found by its name.
    """
    value, given = {keras.layers.Add: 0, keras.layers.Multiply: 1}.get(type(layer)), tensors(args)
    if value is None or len(given) != 2:
        return None
    pairs = zip(given, reversed(given), strict=True)
    return next((x for x, constant in pairs if (constant, value) in neutral), None)


def _clamps(layer):
    """Whether a kernel may apply `layer` to its output, even where others read it without."""
    if isinstance(layer, OperationLayer):
        return _is(layer, *_CLAMPS)
    clamping = (keras.layers.ReLU, keras.layers.PReLU)  # The latter is a ReLU, a sum and a product.
    return isinstance(layer, clamping) or clamp_of(layer) is not None


def _is(layer, *names):
    """Whether a layer is of a type of one of those names, or an operation of it."""
    operation = layer.operation if isinstance(layer, OperationLayer) else layer
    return type(operation).__name__ in names


def _own(layer, kwargs):
    """Returns the keyword arguments of a wrapper that its layer takes, but those Keras fills in."""
    kwargs = {k: v for k, v in kwargs.items() if k not in ("call_site", "training")}
    masks = [x for x in tree.flatten(kwargs.get("mask")) if x is not None]
    if not masks or not layer.layer_takes_mask:
        kwargs.pop("mask", None)
    return kwargs


def _lower_wrapper(layer, args, kwargs, unique, bare):
    call_site = kwargs.get("call_site", 0)
    kwargs = {**layer.call_sites[call_site].settings, **_own(layer, kwargs)}
    given = tensors(args)
    grids = [grid_of(x) for x in given]
    name = unique(layer.layer.name + (f"_call{call_site}" if call_site else ""))
    apart = bare.shut(args) if bare.draws_in(layer.layer, args) else args
    if _clamps(layer.layer):
        apart = bare.shut_each(args)
    if isinstance(layer.layer, OperationLayer):
        apart = layer.layer.without_poles(apart, grids)
    config = layer.quantize_config if layer.batch_norm is None else _folding_config(layer)
    result = config.lower(layer, call_site, apart, kwargs, grids, name)
    # A layer that does nothing at inference returns its input; its output may lie on another grid.
    idle = lambda: keras.layers.Identity(name=unique(f"{name}__idle"))  # noqa: E731
    outputs = tree.map_structure(
        lambda y: idle()(y) if any(y is x for x in given) else y, result.outputs
    )
    if not isinstance(layer.quantize_config, SameGridConfig):
        flat = [
            y if quantizer is None else _within(y, _numbers(quantizer))
            for y, quantizer in itertools.zip_longest(
                tree.flatten(outputs), layer.output_quantizers[call_site]
            )
        ]
        outputs = tree.pack_sequence_as(outputs, flat)
    if call_site:
        kwargs["call_site"] = call_site
    unit = LoweredUnit(
        name,
        layer,
        args,
        kwargs,
        tree.flatten(outputs),
        result.kernels,
        result.dynamic,
        result.bias,
    )
    return outputs, unit


def _output_grids(layer, unit):
    """Returns the grid of each output of a wrapper, `None` where it is float."""
    if isinstance(layer.quantize_config, SameGridConfig):
        grids = [grid_of(x) for x in real(unit.inputs)]
        same = grids[0] if grids and None not in grids else None
        return [same] * len(unit.outputs)
    return [None if q is None else _numbers(q) for q in unit.output_quantizers]


def _within(x, grid):
    """Bounds `x` to a grid of fewer integers than the device stores, which it cannot know of."""
    spec, params = grid.spec, grid.params
    if spec.num_bits == spec.stored_bits:
        return x
    low, high = (float(params.scale * (q - params.zero_point)) for q in (spec.qmin, spec.qmax))
    return keras.ops.minimum(keras.ops.maximum(x, low), high)


def _numbers(quantizer: Quantizer) -> Grid:
    """Returns the quantizer's grid with parameters as numbers."""
    params = quantizer.numbers()
    if params is None:
        raise ValueError(
            "Activations have no grids yet: call tfq.calibrate(model, data) before converting."
        )
    return Grid(params, quantizer.spec)


def _folding_config(wrapper) -> LinearConfig:
    """Returns the config that folds the batch norm of a `QuantizeWrapper` into its kernel."""
    if isinstance(wrapper.quantize_config, LinearConfig):
        return wrapper.quantize_config
    kernel, axis, *_ = LINEAR[type(wrapper.layer)]
    ((_, quantizer),) = wrapper.weight_quantizers
    return LinearConfig(kernel, axis, quantizer.spec, None)
