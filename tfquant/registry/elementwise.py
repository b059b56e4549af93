"""Layers without a kernel: sums, products, activations, pooling, and what only moves values."""

import math

import keras
from keras import ops, tree

from tfquant.layers.plain import PlainSum, PlainUnitNorm
from tfquant.numerics import QuantSpec
from tfquant.numerics.fixed_point import (
    hard_swish,
    requantize_fixed_point,
    requantize_fixed_point_64,
    requantize_mean,
    requantize_sum,
)
from tfquant.quantizers import AbsMax, Fixed, Grid, Static, from_steps, grid_of, on_grid, steps_of
from tfquant.wrappers import Lowering, QuantizeConfig
from tfquant.wrappers.lowering import clamp_layer


@keras.saving.register_keras_serializable(package="tfquant")
class OutputConfig(QuantizeConfig):
    """Quantizes the output of a layer and leaves the layer alone.

    The layer runs in real arithmetic on inputs that lie on their grids; rounding its output to the
    output's grid is what an integer kernel computes, to within a tie.

    Args:
        activations: `QuantSpec` of the output.
        outputs: Number of outputs.
        fixed: `(scale, zero_point)` where the device dictates the grid, else `None`.
    """

    def __init__(self, activations, outputs: int = 1, fixed=None):
        as_spec = QuantSpec.from_dict(activations) if isinstance(activations, dict) else activations
        self.activations = as_spec
        self.outputs = outputs
        self.fixed = tuple(fixed) if fixed else None

    def get_weights_and_quantizers(self, layer):
        """Returns nothing."""
        del layer
        return []

    def get_output_quantizers(self, layer):
        """Returns a `Static`, or `Fixed`, for each output."""
        del layer
        if self.fixed:
            return [Fixed(self.activations, *self.fixed) for _ in range(self.outputs)]
        return [Static(self.activations) for _ in range(self.outputs)]

    def get_config(self):
        return {
            "activations": self.activations.to_dict(),
            "outputs": self.outputs,
            "fixed": self.fixed,
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
        super().__init__(activations, **kwargs)
        self.sign = sign

    def device_call(self, wrapper, call_site, args, kwargs):
        """Adds integers times fixed-point multipliers; real arithmetic differs in ties."""
        grids = [grid_of(x) for x in tree.flatten(args)]
        output = next(iter(wrapper.output_quantizers[call_site]), None)
        if len(grids) != 2 or None in grids or output is None or not output.calibrated:
            return None
        if output.spec.num_bits > 8:
            return None
        scale = output.params().scale
        a, b = (steps_of(x) for x in tree.flatten(args))
        a_scale, b_scale = (grid.params.scale / scale for grid in grids)
        steps = requantize_sum(a, b, a_scale, self.sign * b_scale)
        return from_steps(steps, output, wrapper.call_sites[call_site].clamp)

    def lower(self, wrapper, call_site, args, kwargs, input_grids, name):
        """Calls the sum of two tensors as one operator."""
        if type(wrapper.layer) is not keras.layers.Add or len(args[0]) != 2:
            return super().lower(wrapper, call_site, args, kwargs, input_grids, name)
        y = PlainSum(name=name)(args[0])
        return Lowering(clamp_layer(y, wrapper.call_sites[call_site].clamp))

    def get_config(self):
        return {**super().get_config(), "sign": self.sign}


@keras.saving.register_keras_serializable(package="tfquant")
class ProductConfig(OutputConfig):
    """Elementwise products: the integers are multiplied, then scaled once."""

    def device_call(self, wrapper, call_site, args, kwargs):
        """Computes `(a - za) * (b - zb) * (sa * sb / so)`."""
        grids = [grid_of(x) for x in tree.flatten(args)]
        output = next(iter(wrapper.output_quantizers[call_site]), None)
        if len(grids) != 2 or None in grids or output is None or not output.calibrated:
            return None
        (sa, sb), params = (grid.params.scale for grid in grids), output.params()
        integers = tree.map_structure(steps_of, args)
        steps = wrapper.call_exactly(*integers, **kwargs) * (sa * sb / params.scale)
        return from_steps(steps, output, wrapper.call_sites[call_site].clamp)


@keras.saving.register_keras_serializable(package="tfquant")
class LeakyReluConfig(OutputConfig):
    """Leaky ReLU: XNNPACK multiplies by 8-bit fractions.

    m = round(256 * s / so),  times the slope where x < 0
    q = floor((qx - zx) * m / 256 + 1/2) + zo
    """

    def device_call(self, wrapper, call_site, args, kwargs):
        """Computes with the device's multipliers."""
        grid = grid_of(args[0])
        output = next(iter(wrapper.output_quantizers[call_site]), None)
        if grid is None or output is None or not output.calibrated or grid.spec.num_bits > 8:
            return None
        layer = wrapper.layer
        slope = getattr(layer, "negative_slope", 0.2)  # Of `keras.activations.leaky_relu`.
        ratio = grid.params.scale / output.params().scale
        steps = steps_of(args[0])
        positive, negative = ops.round(256.0 * ratio), ops.round(256.0 * (ratio * slope))
        product = steps * ops.where(steps < 0, negative, positive)
        return from_steps(ops.floor(product * 2.0**-8 + 0.5), output)


@keras.saving.register_keras_serializable(package="tfquant")
class MeanConfig(OutputConfig):
    """Means over space: the integers are summed, then scaled once."""

    def device_call(self, wrapper, call_site, args, kwargs):
        """Computes `requantize_mean`, and in 16 bits `sum(q - z) * (s / (so * count))`."""
        grid = grid_of(args[0])
        output = next(iter(wrapper.output_quantizers[call_site]), None)
        if (
            grid is None
            or output is None
            or not output.calibrated
            or kwargs.get("mask") is not None
        ):
            return None
        params = output.params()
        mean = wrapper.call_exactly(steps_of(args[0]), **kwargs)
        count = ops.cast(ops.size(args[0]), "float64") / ops.cast(ops.size(mean), "float64")
        total = ops.round(mean * ops.cast(count, mean.dtype))
        if grid.spec.num_bits <= 8:
            return from_steps(requantize_mean(total, count, grid.params, params), output)
        scale = ops.cast(grid.params.scale, "float64") / ops.cast(params.scale, "float64") / count
        return from_steps(total * ops.cast(scale, total.dtype), output)


@keras.saving.register_keras_serializable(package="tfquant")
class ReduceProductConfig(OutputConfig):
    """Products of all values along some axes, of `keras.ops.prod`.

    LiteRT's built-in kernel scales behind every factor, so that no product outgrows 32 bits:

        m = (s**n / so)**(1 / n)
        y = q0 - z,   y = round(y * (q_i - z) * m) for each further factor,   round(y * m)
    """

    def device_call(self, wrapper, call_site, args, kwargs):
        """Computes with the device's multiplier, in its order."""
        x, grid = args[0], grid_of(args[0])
        output = next(iter(wrapper.output_quantizers[call_site]), None)
        if grid is None or output is None or not output.calibrated or grid.spec.num_bits > 8:
            return None
        operation, rank = wrapper.layer.operation, len(x.shape)
        axes = tree.flatten(range(rank) if operation.axis is None else operation.axis)
        axes = sorted(axis % rank for axis in axes)
        if any(x.shape[axis] is None for axis in axes):
            return None
        kept = [axis for axis in range(rank) if axis not in axes]
        count = math.prod(x.shape[axis] for axis in axes)
        steps = ops.transpose(ops.cast(steps_of(x), "float64"), (*axes, *kept))
        first, *others = ops.unstack(ops.reshape(steps, (count, *ops.shape(steps)[len(axes) :])))
        s, so = (ops.cast(g.scale, "float64") for g in (grid.params, output.params()))
        multiplier = ops.exp(ops.log(s) - ops.log(so) / count)
        y = first
        for factor in others:
            y = requantize_fixed_point_64(y * factor, multiplier)
        y = ops.cast(requantize_fixed_point_64(y, multiplier), "float32")
        if operation.keepdims:
            y = ops.expand_dims(y, axes)
        return from_steps(y, output)


@keras.saving.register_keras_serializable(package="tfquant")
class AbsConfig(OutputConfig):
    """Magnitudes: LiteRT's built-in kernel scales them in fixed point."""

    def device_call(self, wrapper, call_site, args, kwargs):
        """Computes `|q - z| * (s / so)`."""
        grid = grid_of(args[0])
        output = next(iter(wrapper.output_quantizers[call_site]), None)
        if grid is None or output is None or not output.calibrated:
            return None
        s, so = (ops.cast(g.scale, "float64") for g in (grid.params, output.params()))
        steps = requantize_fixed_point(ops.abs(steps_of(args[0])), s / so)
        return from_steps(ops.cast(steps, "float32"), output)


@keras.saving.register_keras_serializable(package="tfquant")
class UnitNormConfig(OutputConfig):
    """Vectors brought to length 1: L2_NORMALIZATION takes the inverse root in fixed point."""

    def lower(self, wrapper, call_site, args, kwargs, input_grids, name):
        """Calls the norm as one operator."""
        del wrapper, call_site, kwargs, input_grids
        return Lowering(PlainUnitNorm(name=name)(*args))


@keras.saving.register_keras_serializable(package="tfquant")
class SwishConfig(OutputConfig):
    """`x * sigmoid(x)`: the device computes a LOGISTIC of fixed grid, then a product."""

    def device_call(self, wrapper, call_site, args, kwargs):
        """Rounds the sigmoid to its fixed grid before the product."""
        x, grid = args[0], grid_of(args[0])
        output = next(iter(wrapper.output_quantizers[call_site]), None)
        if grid is None or output is None or not output.calibrated:
            return None
        gate_scale = 2.0**-8 if grid.spec.stored_bits == 8 else 2.0**-15
        gate = ops.clip(ops.round(ops.sigmoid(x) / gate_scale), 0, 1 / gate_scale - 1)
        params = output.params()
        steps = steps_of(x) * gate * (grid.params.scale * gate_scale / params.scale)
        return from_steps(steps, output)


@keras.saving.register_keras_serializable(package="tfquant")
class HardSwishConfig(OutputConfig):
    """`x * relu6(x + 3) / 6`, in LiteRT's 16-bit fixed point."""

    def device_call(self, wrapper, call_site, args, kwargs):
        """Computes with the device's multipliers."""
        grid = grid_of(args[0])
        output = next(iter(wrapper.output_quantizers[call_site]), None)
        if grid is None or output is None or not output.calibrated or grid.spec.num_bits > 8:
            return None
        steps = hard_swish(steps_of(args[0]), grid.params.scale, output.params().scale)
        return from_steps(ops.cast(steps, "float32"), output)


@keras.saving.register_keras_serializable(package="tfquant")
class SameGridConfig(QuantizeConfig):
    """Layers whose output lies on the grid of their input: they move values, or pick some.

    The TFLite 8-bit quantization specification asks it of MAX_POOL_2D, RESHAPE, PAD,
    CONCATENATION and their like. All inputs share one grid.

    Args:
        activations: `QuantSpec` that the input is brought to, or `None` to take it as it comes.
    """

    def __init__(self, activations=None):
        as_spec = QuantSpec.from_dict(activations) if isinstance(activations, dict) else activations
        self.activations = as_spec

    def get_weights_and_quantizers(self, layer):
        """Returns nothing."""
        del layer
        return []

    def get_output_quantizers(self, layer):
        """Returns nothing: the grid is the input's."""
        del layer
        return []

    def device_call(self, wrapper, call_site, args, kwargs):
        """Runs the layer and passes the grid on."""
        del call_site
        grids = [grid_of(x) for x in tree.flatten(args) if _is_real(x)]
        if not grids or None in grids:
            return None
        if len(grids) > 1 and (grids[0].group is None or len({g.group for g in grids}) > 1):
            return None  # Not calibrated yet: the branches do not agree.
        params, spec, _, group = grids[0]
        moved = self.on_steps(wrapper, tree.map_structure(_steps, args), kwargs, params)
        return tree.map_structure(
            lambda steps: on_grid(steps * params.scale, Grid(params, spec, steps, group)), moved
        )

    def on_steps(self, wrapper, args, kwargs, params):
        """Runs the layer on integers `q - zero_point`; returns those of its outputs."""
        del params
        return wrapper.call_exactly(*args, **kwargs)

    def get_config(self):
        return {"activations": self.activations.to_dict() if self.activations else None}


@keras.saving.register_keras_serializable(package="tfquant")
class AverageConfig(SameGridConfig):
    """Average pooling: LiteRT divides the sum of the raw integers, half away from zero."""

    def on_steps(self, wrapper, args, kwargs, params):
        """Computes `round(mean(q))` on raw integers."""
        mean = wrapper.call_exactly(*args, **kwargs) + params.zero_point
        return _half_away(mean) - params.zero_point


@keras.saving.register_keras_serializable(package="tfquant")
class AdaptiveAverageConfig(AverageConfig):
    """Average pooling to a given size: the device pools one axis after the other."""

    def on_steps(self, wrapper, args, kwargs, params):
        """Rounds behind each axis."""
        (x,), layer = args, wrapper.layer
        sizes = list(x.shape[1:-1])
        for axis, size in enumerate(layer.output_size):
            sizes[axis] = size
            mean = ops.adaptive_average_pool(x, tuple(sizes), "channels_last") + params.zero_point
            x = _half_away(mean) - params.zero_point
        return x


@keras.saving.register_keras_serializable(package="tfquant")
class ResizeConfig(SameGridConfig):
    """Images of another size: nearest neighbours are picked, bilinear ones averaged and rounded."""

    def on_steps(self, wrapper, args, kwargs, params):
        """Computes `round(resize(q))`."""
        del params
        return ops.round(wrapper.call_exactly(*args, **kwargs))


@keras.saving.register_keras_serializable(package="tfquant")
class PReluConfig(OutputConfig):
    """Leaky ReLU whose slopes are weights: `alpha` is an 8-bit constant of the file."""

    def get_weights_and_quantizers(self, layer):
        """Returns `alpha` with one scale."""
        return [(layer.alpha, AbsMax(QuantSpec(8, symmetric=True, narrow_range=True)))]


def _half_away(mean):
    """Rounds means half away from zero."""
    # A mean of up to 10,000 integers is a multiple of 1e-4: what is closer to a half is one.
    return ops.sign(mean) * ops.floor(ops.abs(mean) + (0.5 + 1e-5))


def _is_real(x):
    return hasattr(x, "shape") and keras.backend.is_float_dtype(x.dtype)


def _steps(x):
    return steps_of(x) if _is_real(x) else x
