"""Layers without a kernel: sums, products, activations, pooling, and what only moves values."""

import dataclasses
import functools

import keras
from keras import ops, tree

from tfquant.devices import fixed_grid
from tfquant.kernels.builtin import flat_axes
from tfquant.layers.plain import Barrier, PlainInverseRoot, PlainSum, PlainUnitNorm
from tfquant.numerics import QuantParams, QuantSpec
from tfquant.quantizers import (
    STORED,
    AbsMax,
    Fixed,
    Grid,
    Static,
    from_steps,
    grid_of,
    on_grid,
    round_to,
)
from tfquant.wrappers import Lowering, QuantizeConfig
from tfquant.wrappers.call import is_real
from tfquant.wrappers.lowering import clamp_layer


@keras.saving.register_keras_serializable(package="tfquant")
class OutputConfig(QuantizeConfig):
    """Quantizes the output of a layer that one operator of the device computes.

    Where the device's arithmetic is not known the layer runs in real arithmetic on inputs that lie
    on their grids; rounding its output to the output's grid is what an integer kernel computes, to
    within a tie.

    Args:
        activations: `QuantSpec` of the output.
        outputs: Number of outputs.
        fixed: `(scale, zero_point)` where the device dictates the grid, else `None`.
        operator: Name of the device's operator, or `None`.
        headroom: How many times the range that calibration finds the grid covers.
    """

    def __init__(
        self,
        activations,
        outputs: int = 1,
        fixed=None,
        operator: str | None = None,
        headroom: float = 1.0,
    ):
        self.activations = QuantSpec.of(activations)
        self.outputs, self.headroom = outputs, headroom
        self.fixed = tuple(fixed) if fixed else None
        self.operator = operator

    def get_weights_and_quantizers(self, layer):
        """Returns nothing."""
        del layer
        return []

    def output_specs(self, layer):
        """Returns that of the activations, for each output."""
        del layer
        return [self.activations] * self.outputs

    def get_output_quantizers(self, layer):
        """Returns a `Static`, or `Fixed`, for each output."""
        specs = self.output_specs(layer)
        if self.fixed:
            return [Fixed(spec, *self.fixed) for spec in specs]
        quantizers = [Static(spec) for spec in specs]
        for quantizer in quantizers:
            quantizer.headroom = self.headroom
        return quantizers

    def device_call(self, call):
        """Computes the operator on integers."""
        if self.outputs != 1 or not call.computes(self.operator):
            return None
        settings = self.settings(call)
        return None if settings is None else call.compute(self.operator, **settings)

    def settings(self, call) -> dict | None:
        """Returns what the operator needs to know beside its inputs; `None` if it is not known."""
        del call
        return {}

    def get_config(self):
        return {
            "activations": self.activations.to_dict(),
            "outputs": self.outputs,
            "fixed": self.fixed,
            "operator": self.operator,
            "headroom": self.headroom,
        }


@keras.saving.register_keras_serializable(package="tfquant")
class TableConfig(OutputConfig):
    """Rows of a table, looked up by numbers that have no grid, whatever their dtype."""

    @property
    def reads_grids(self):
        """False: ids come as they are."""
        return False


@keras.saving.register_keras_serializable(package="tfquant")
class SumConfig(OutputConfig):
    """Sums (`sign` 1) and differences (`sign` -1) of two tensors.

    Args:
        activations: `QuantSpec` of the output.
        sign: What the second tensor is multiplied by.
    """

    def __init__(self, activations, sign: int = 1, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "ADD" if sign > 0 else "SUB"})
        self.sign = sign

    def settings(self, call):
        """Returns nothing, for two tensors."""
        return {} if len(call.inputs) == 2 else None

    def lower(self, wrapper, call_site, args, kwargs, input_grids, name):
        """Calls the sum of two tensors as one operator."""
        if type(wrapper.layer) is not keras.layers.Add or len(args[0]) != 2:
            return super().lower(wrapper, call_site, args, kwargs, input_grids, name)
        y = PlainSum(name=name)(args[0])
        return Lowering(clamp_layer(y, wrapper.call_sites[call_site].clamp, name))

    def get_config(self):
        return {**super().get_config(), "sign": self.sign}


@keras.saving.register_keras_serializable(package="tfquant")
class ProductConfig(OutputConfig):
    """Elementwise products of two tensors."""

    def __init__(self, activations, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "MUL"})

    def settings(self, call):
        """Returns nothing, for two tensors."""
        return {} if len(call.inputs) == 2 else None


@keras.saving.register_keras_serializable(package="tfquant")
class LeakyReluConfig(OutputConfig):
    """Leaky ReLU."""

    def __init__(self, activations, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "LEAKY_RELU"})

    def settings(self, call):
        """Returns the slope, that of `keras.activations.leaky_relu` where the layer has none."""
        return {"slope": getattr(call.layer, "negative_slope", 0.2)}


# Bounds that are an operator of their own.
CLAMPS = {(-1, 1): "RELU_N1_TO_1"}


@keras.saving.register_keras_serializable(package="tfquant")
class ClipConfig(OutputConfig):
    """Brings values to the output's grid and bounds their integers there, `keras.ops.clip`."""

    def device_call(self, call):
        """Requantizes, and bounds what comes out."""
        bounds = call.layer.operation.x_min, call.layer.operation.x_max
        numbers = all(isinstance(bound, (int, float)) for bound in bounds)
        if not numbers or call.clamp is not None:
            return None
        if bounds in CLAMPS:
            return call.compute(CLAMPS[bounds]) if call.computes(CLAMPS[bounds]) else None
        if not call.computes("QUANTIZE"):
            return None
        steps = call.device.compute("QUANTIZE", call.inputs, call.output)
        return from_steps(ops.cast(steps, "float32"), call.quantizer, bounds)


@keras.saving.register_keras_serializable(package="tfquant")
class TanhGeluConfig(OutputConfig):
    """The approximation of a GELU by a hyperbolic tangent."""

    def __init__(self, activations, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "GELU"})

    def settings(self, call):
        """Returns the name of the approximation."""
        del call
        return {"function": "GELU_TANH"}


@keras.saving.register_keras_serializable(package="tfquant")
class ReduceConfig(OutputConfig):
    """Sums and means over some axes: the integers are summed, then scaled once."""

    def settings(self, call):
        """Returns the sums and how many integers are in each."""
        if call.kwargs.get("mask") is not None:
            return None
        x = ops.cast(call.inputs[0].steps, "float64")
        y = call.wrapper.call_exactly(x, **call.kwargs)
        count = ops.cast(ops.size(x), "float64") / ops.cast(ops.size(y), "float64")
        sums = ops.round(y * count) if self.operator == "MEAN" else y
        return {"sums": ops.cast(sums, "float32") if _is_narrow(call) else sums, "count": count}


@keras.saving.register_keras_serializable(package="tfquant")
class ReduceProductConfig(OutputConfig):
    """Products of all values along some axes, of `keras.ops.prod`."""

    def __init__(self, activations, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "REDUCE_PROD"})

    def settings(self, call):
        """Returns the axes, and whether the output keeps them."""
        operation, shape = call.layer.operation, call.inputs[0].steps.shape
        axes = flat_axes(operation.axis, len(shape))
        if any(shape[axis] is None for axis in axes):
            return None
        return {"axes": axes, "keepdims": operation.keepdims}


@keras.saving.register_keras_serializable(package="tfquant")
class VectorConfig(OutputConfig):
    """Softmax and its like, which look at whole vectors: the device's at those of the last axis."""

    def why_not_of(self, layer, shape, device) -> str:
        """Returns why tensors of a shape are not computed in integers; nothing if they are."""
        axis = axis_of(layer)
        length = shape[axis] if isinstance(axis, int) else None
        return device.why_too_long(self.operator, self.activations.stored_bits, length)

    def device_call(self, call):
        """Computes the operator, with its axis moved to the end."""
        if not call.computes(self.operator) or call.kwargs.get("mask") is not None:
            return None
        axis = axis_of(call.layer)
        if not isinstance(axis, int):
            return None
        (x,) = call.inputs
        x = x._replace(steps=ops.moveaxis(x.steps, axis, -1))
        steps = call.device.compute(self.operator, (x,), call.output)
        return call.finish(ops.moveaxis(steps, -1, axis))


@keras.saving.register_keras_serializable(package="tfquant")
class UnitNormConfig(OutputConfig):
    """Vectors brought to length 1: L2_NORMALIZATION takes the inverse root in fixed point."""

    def lower(self, wrapper, call_site, args, kwargs, input_grids, name):
        """Calls the norm as one operator, which the converter would tear to square a difference."""
        del wrapper, call_site, kwargs, input_grids
        (x,) = args
        return Lowering(PlainUnitNorm(name=name)(Barrier(name=f"{name}__barrier")(x)))


@keras.saving.register_keras_serializable(package="tfquant")
class InverseRootConfig(OutputConfig):
    """Inverse roots inside a norm."""

    def __init__(self, activations, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "RSQRT"})

    def lower(self, wrapper, call_site, args, kwargs, input_grids, name):
        """Calls the root as one operator."""
        del wrapper, call_site, kwargs, input_grids
        return Lowering(PlainInverseRoot(name=name)(*args))


@keras.saving.register_keras_serializable(package="tfquant")
class SwishConfig(OutputConfig):
    """`x * sigmoid(x)`: the device computes a LOGISTIC of fixed grid, then a product."""

    def device_call(self, call):
        """Rounds the sigmoid to its fixed grid before the product."""
        if not (call.computes("LOGISTIC") and call.computes("MUL")):
            return None
        (x,), spec = call.inputs, call.output.spec
        gate = gate_grid(call.device, spec)
        steps = call.device.compute("LOGISTIC", (x,), gate)
        low, high = gate.spec.qmin - gate.params.zero_point, gate.spec.qmax - gate.params.zero_point
        steps = ops.clip(ops.round(ops.cast(steps, "float32")), low, high)
        return call.compute("MUL", (x, gate._replace(steps=steps)))


@keras.saving.register_keras_serializable(package="tfquant")
class SameGridConfig(QuantizeConfig):
    """Layers whose output lies on the grid of their input: they move values, or pick some.

    The TFLite 8-bit quantization specification asks it of MAX_POOL_2D, RESHAPE, PAD,
    CONCATENATION and their like. All inputs share one grid.

    Args:
        activations: `QuantSpec` that the input is brought to, or `None` to take it as it comes.
    """

    def __init__(self, activations=None):
        self.activations = QuantSpec.of(activations)

    def get_weights_and_quantizers(self, layer):
        """Returns nothing."""
        del layer
        return []

    def get_output_quantizers(self, layer):
        """Returns nothing: the grid is the input's."""
        del layer
        return []

    def device_call(self, call):
        """Runs the layer and passes the grid on."""
        if not call.on_grids:
            return None
        computed = [grid for grid in call.grids if grid.group != STORED]
        groups = {grid.group for grid in computed}
        if not computed or (len(computed) > 1 and (None in groups or len(groups) > 1)):
            return None  # Not calibrated yet: the branches do not agree.
        grid = computed[0]
        if len(computed) < len(call.grids):
            stored = lambda x: is_real(x) and grid_of(x).group == STORED  # noqa: E731
            bring = lambda x: round_to(grid, x / grid.params.scale) if stored(x) else x  # noqa: E731
            call = dataclasses.replace(call, args=tree.map_structure(bring, call.args))
        return tree.map_structure(
            lambda steps: on_grid(
                ops.cast(steps, "float32") * grid.params.scale,
                grid._replace(steps=ops.cast(steps, "float32")),
            ),
            self.on_steps(call),
        )

    def on_steps(self, call):
        """Returns the integers `q - zero_point` of the outputs."""
        return call.run()

    def get_config(self):
        return {"activations": self.activations.to_dict() if self.activations else None}


@keras.saving.register_keras_serializable(package="tfquant")
class AverageConfig(SameGridConfig):
    """Average pooling: the device divides the sum of the raw integers."""

    def on_steps(self, call):
        """Computes `round(mean(q))` on raw integers."""
        whole = pools_all(call.layer, call.inputs[0].steps.shape)
        return _average(call, call.inputs[0], call.wrapper.call_exactly, whole)


@keras.saving.register_keras_serializable(package="tfquant")
class AdaptiveAverageConfig(AverageConfig):
    """Average pooling to a given size: the device pools one axis after the other."""

    def on_steps(self, call):
        """Rounds behind each axis."""
        grid = call.inputs[0]
        sizes = list(grid.steps.shape[1:-1])
        for axis, size in enumerate(call.layer.output_size):
            sizes[axis] = size
            pool = functools.partial(
                ops.adaptive_average_pool, output_size=tuple(sizes), data_format="channels_last"
            )
            grid = grid._replace(steps=_average(call, grid, pool))
        return grid.steps


@keras.saving.register_keras_serializable(package="tfquant")
class ResizeConfig(SameGridConfig):
    """Images of another size: nearest neighbours are picked, bilinear ones averaged and rounded."""

    def on_steps(self, call):
        """Has the device interpolate, where the layer does nothing else."""
        y, grid = ops.round(call.run()), call.inputs[0]
        old, new = grid.steps.shape[1:3], y.shape[1:3]
        bilinear = getattr(call.layer, "interpolation", None) == "bilinear"
        cuts = any(getattr(call.layer, f"{how}_to_aspect_ratio", False) for how in ("crop", "pad"))
        if not bilinear or cuts or old == new or None in (*old, *new):
            return y
        return call.device.compute("RESIZE_BILINEAR", (grid,), grid, size=tuple(new))


class _ConstantOperandConfig(OutputConfig):
    """An operator of a tensor and a weight, which is a constant of the file with one scale."""

    def weight(self, layer):
        """Returns the variable, and its width."""
        raise NotImplementedError

    def get_weights_and_quantizers(self, layer):
        """Returns the weight with one scale."""
        variable, num_bits = self.weight(layer)
        return [(variable, AbsMax(QuantSpec(num_bits, symmetric=True, narrow_range=True)))]

    def device_call(self, call):
        """Computes with the integers of the weight."""
        if not call.computes(self.operator):
            return None
        ((variable, quantizer),) = call.wrapper.weight_quantizers
        scale = ops.reshape(quantizer.params(variable.value).scale, ())
        steps = ops.round(quantizer.call(variable.value) / scale)
        operand = Grid(QuantParams(scale, 0.0), quantizer.spec, ops.expand_dims(steps, 0))
        return call.compute(self.operator, (*call.inputs, operand))


@keras.saving.register_keras_serializable(package="tfquant")
class PReluConfig(_ConstantOperandConfig):
    """Leaky ReLU whose slopes are weights: `alpha` is an 8-bit constant of the file."""

    def __init__(self, activations, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "PRELU"})

    def weight(self, layer):
        """Returns `alpha`, of 8 bits."""
        return layer.alpha, 8


@keras.saving.register_keras_serializable(package="tfquant")
class ScaleConfig(_ConstantOperandConfig):
    """Products with a weight, a number for each channel, of the width of what it multiplies."""

    def __init__(self, activations, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "MUL"})

    def weight(self, layer):
        """Returns `factor`."""
        return layer.factor, self.activations.stored_bits


def gate_grid(device, spec) -> Grid:
    """Returns the grid on which a sigmoid lies, in the width of `spec`."""
    scale, zero_point = fixed_grid(device.operators["LOGISTIC"].grid, spec.stored_bits)
    wide = spec.stored_bits > 8
    params = QuantParams(ops.cast(scale, "float32"), ops.cast(zero_point, "float32"))
    return Grid(params, QuantSpec(spec.stored_bits, symmetric=wide))


def pools_all(layer, shape) -> bool:
    """Whether the one window of a pooling layer is the whole of each channel."""
    return tuple(layer.pool_size) == tuple(shape[1:-1])


def _average(call, grid, mean_of, whole=False):
    settings = {"mean_of": mean_of, "whole": whole}
    return call.device.compute("AVERAGE_POOL_2D", (grid,), grid, **settings)


def _is_narrow(call):
    return call.output.spec.stored_bits == 8


def axis_of(layer):
    """Returns the axis of a softmax; the last one where there is no choice."""
    axis = getattr(getattr(layer, "operation", layer), "axis", -1)
    return axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
