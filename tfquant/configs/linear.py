"""Layers that multiply by a kernel and add a bias: dense and convolutions."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from tfquant.devices import Product
from tfquant.layers.copy import copy_layer, undrawn
from tfquant.layers.plain import PlainConvolution, PlainDense
from tfquant.numerics import PerAxis, PerGroup, QuantSpec, group_scale
from tfquant.numerics.arrays import arithmetic, array_of, at_hand
from tfquant.numerics.fixed_point import accumulate, multiplier_dtype, requantize
from tfquant.numerics.params import SMALLEST_SCALE
from tfquant.quantizers import AbsMax, Dynamic, Float16, Static, grid_of
from tfquant.wrappers import KnownIntegers, LoweredKernel, Lowering, QuantizeConfig
from tfquant.wrappers.lowering import as_integers, clamp_layer
from tfquant.wrappers.wrapper import clamp

# A bias may take this much of an int32 accumulator; the rest is left for the products. A kernel
# of over 33,000 products an output at full scale would need more: none of those is known.
BIAS_LIMIT = 2.0**30

# A channel whose step is smaller than the largest one's by this factor is dead: its weights are
# noise left by a batch norm, and its multiplier would leave the range that kernels accept.
DEAD_CHANNEL = 2.0**-24

# Axis of a kernel that is cut into groups: its inputs, in front of its outputs.
GROUP_AXIS = -2


@keras.saving.register_keras_serializable(package="tfquant")
class LinearConfig(QuantizeConfig):
    """Quantizes `kernel` for each output channel or group of its inputs, and the output as a whole.

    A batch norm behind the layer is folded. With `g = gamma / sqrt(variance + epsilon)`:

        kernel * g  =  q * (scale * |g|) * sign(g)
        bias        =  (layer bias - mean) * g + beta

    so the integers `q` are those of the unfolded kernel, up to sign
    (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2). Scales of groups are rounded to 16 bits
    once more when they are folded, and `q` with them.

    A kernel that groups do not divide has a scale for each output channel.

    Args:
        kernel: Name of the layer's kernel.
        channel_axis: Axis or axes of the kernel that number the output channels.
        weights: `QuantSpec` of the kernel, `"float16"`, or `None` to leave it.
        activations: `QuantSpec` of the output, or `None` to leave it float.
        dynamic: Whether the kernel quantizes its input when it runs.
        operator: Name of the device's operator that computes the layer.
    """

    def __init__(
        self,
        kernel,
        channel_axis,
        weights,
        activations,
        dynamic: bool = False,
        operator: str = "CONV_2D",
    ):
        as_tuple = tuple(channel_axis) if isinstance(channel_axis, list) else channel_axis
        self.kernel = kernel
        self.channel_axis = as_tuple
        self.weights, self.activations = QuantSpec.of(weights), QuantSpec.of(activations)
        self.dynamic = dynamic
        self.operator = operator

    def get_weights_and_quantizers(self, layer):
        """Returns the kernel with `AbsMax` or `Float16`."""
        if self.weights is None:
            return []
        if self.weights == "float16":
            return [(getattr(layer, self.kernel), Float16())]
        spec = self.weights
        if self.why_not_grouped(layer):
            spec = dataclasses.replace(spec, granularity=PerAxis(self.channel_axis))
        return [(getattr(layer, self.kernel), AbsMax(spec))]

    def why_not_grouped(self, layer) -> str:
        """Returns why the kernel of `layer` has no groups, where the scheme has; else nothing."""
        granularity = getattr(self.weights, "granularity", None)
        if not isinstance(granularity, PerGroup):
            return ""
        inputs, size = getattr(layer, self.kernel).shape[GROUP_AXIS], granularity.group_size
        return f"groups of {size} do not divide its {inputs} inputs" if inputs % size else ""

    def input_quantizer(self, wrapper) -> Dynamic | None:
        """Returns what rounds the input when the layer runs, `None` where nothing does."""
        if not self.dynamic:
            return None
        spec, shape = QuantSpec(8), (None, None)
        return Dynamic(spec, **wrapper.device.at_run_time(self.product(wrapper, spec, shape, True)))

    def output_specs(self, layer):
        """Returns that of the activations, or nothing where they are float."""
        del layer
        return [] if self.activations is None else [self.activations]

    def get_output_quantizers(self, layer):
        """Returns one `Static`, or nothing for float activations."""
        return [Static(spec) for spec in self.output_specs(layer)]

    def device_call(self, call):
        """Multiplies integers by integers, adds an integer bias and requantizes."""
        wrapper, x = call.wrapper, call.args[0]
        if self.dynamic:
            x = self.input_quantizer(wrapper).call(x)
            return clamp(self.real_call(wrapper, (x, *call.args[1:]), call.kwargs), call.clamp)
        if is_grouped(wrapper):
            return None  # Groups are added up as real numbers.
        if not isinstance(self.weights, QuantSpec) or not call.on_grids:
            return None
        if call.quantizer is not None and not call.quantizer.calibrated:
            return None
        (grid, *_), (scale_in, _) = call.inputs, call.grids[0].params
        kernel, scale, bias = self.integer_weights(wrapper, scale_in)
        multiply = lambda integers, _: self._multiply(wrapper, integers, kernel)  # noqa: E731
        accumulator = accumulate(multiply, grid.steps, grid.spec.num_bits)
        accumulator = accumulator + ops.cast(bias, accumulator.dtype)
        if call.quantizer is None:
            return clamp(ops.cast(accumulator, "float32") * (scale_in * scale), call.clamp)
        scales = scale_in, scale, call.output.params.scale

        def requantized(rounding):
            dtype = multiplier_dtype(rounding)
            x_scale, kernel_scale, scale_out = (ops.cast(v, dtype) for v in scales)
            return requantize(accumulator, x_scale * kernel_scale / scale_out, rounding)

        plain, biased = (
            call.device.rounding(self.product(wrapper, grid.spec, accumulator.shape, bias))
            for bias in (False, True)
        )
        if plain == biased:
            return call.finish(requantized(biased))
        bias = has_bias(wrapper)
        if isinstance(bias, np.bool_):
            return call.finish(requantized(biased if bias else plain))
        return call.finish(ops.where(bias, requantized(biased), requantized(plain)))

    def product(self, wrapper, spec, shape, bias: bool) -> Product:
        """Returns what decides how the device rounds what the layer computes.

        Args:
            wrapper: The `QuantizeWrapper`.
            spec: `QuantSpec` of the input.
            shape: Shape of the output, batch and channels included.
            bias: Whether there is one.
        """
        kernel, positions = getattr(wrapper.layer, self.kernel), shape[1:-1]
        channels = _channels(wrapper.layer, wrapper)
        return Product(
            self.operator,
            self.weights.num_bits,
            spec.stored_bits,
            depth=math.prod(kernel.shape) // channels,
            channels=channels,
            columns=None if None in positions else math.prod(positions),
            bias=bias,
            pointwise=_is_pointwise(wrapper.layer, kernel),
        )

    def real_call(self, wrapper, args, kwargs, weights=None):
        """Multiplies by the folded kernel: one pass over the output less than a batch norm.

        Args:
            wrapper: The `QuantizeWrapper`.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.
            weights: From `real_weights`, where a caller has them already.
        """
        if weights is None and wrapper.batch_norm is None:
            return super().real_call(wrapper, args, kwargs)
        kernel, bias = self.real_weights(wrapper) if weights is None else weights
        return self._multiply(wrapper, ops.cast(args[0], "float32"), kernel) + bias

    def by_channel(self, wrapper, values):
        """Returns `values`, one for each channel, such that they broadcast against the kernel."""
        ((variable, _),) = wrapper.weight_quantizers
        return arithmetic(values).reshape(values, _channel_shape(variable, self.channel_axis))

    def rescaled(self, wrapper, gain, shift) -> list | None:
        """Returns what makes layer and batch norm compute `gain * y + shift` instead of `y`.

        The integers of the kernel stay: a gain belongs to the batch norm's gamma, else to the
        kernel and its steps alike.

        Args:
            wrapper: The `QuantizeWrapper`.
            gain: Positive, one number for each channel; `None` for 1.
            shift: Likewise, of any sign.

        Returns:
            Pairs of a variable and its new value; `None` where there is no variable for it.
        """
        layer, norm = wrapper.layer, wrapper.batch_norm
        center = norm.center if norm is not None else layer.use_bias
        if not center or (norm is None and layer.bias.shape != shift.shape):
            return None
        if gain is None:
            bias = layer.bias if norm is None else norm.beta
            return [(bias, bias + shift)]
        if norm is not None and norm.scale:
            return [(norm.gamma, norm.gamma * gain), (norm.beta, norm.beta * gain + shift)]
        scaled = self._scaled_kernel(wrapper, gain)
        if scaled is None or norm is None:
            return scaled and [*scaled, (layer.bias, layer.bias * gain + shift)]
        if layer.use_bias:
            scaled = [*scaled, (layer.bias, layer.bias * gain)]
        # The mean that the norm takes off is in front of the gain.
        mean = norm.moving_mean / ops.sqrt(norm.moving_variance + norm.epsilon)
        return [*scaled, (norm.beta, norm.beta * gain + shift + (1 - gain) * mean)]

    def _scaled_kernel(self, wrapper, gain):
        """Returns the pairs that scale the channels of the kernel, `None` where steps cannot."""
        if not wrapper.weight_quantizers or not isinstance(self.weights, QuantSpec):
            return None
        ((variable, quantizer),) = wrapper.weight_quantizers
        gain = self.by_channel(wrapper, gain)
        steps = quantizer.scaled_steps(gain)
        return None if steps is None else [(variable, variable * gain), *steps]

    @np.errstate(all="ignore")  # As in a graph.
    def integer_weights(self, wrapper, input_scale):
        """Returns the integers that the device multiplies with, batch norm folded.

        Args:
            wrapper: The `QuantizeWrapper`.
            input_scale: Step of the input, a number, or `None` when it is not known.

        Returns:
            `(kernel, scale, bias)`: floats, tensors in a graph and else arrays, which have no
            gradient. `kernel` holds integers in the shape of the layer's kernel, `scale` the
            float32 step of each channel, flat, or those of groups, `[groups, channels]`, and `bias`
            integers of step `input_scale * scale` (real numbers where `input_scale` is `None` or
            there are groups), flat, float64.
        """
        known = KnownIntegers.current()
        found = known and known.get(wrapper, input_scale)
        if found is not None:
            return found
        ((variable, quantizer),) = wrapper.weight_quantizers
        kernel, input_scale = _float32(variable), array_of(input_scale)
        if type(input_scale) is float:
            input_scale = np.float32(input_scale)  # As every scale is.
        factor, bias = _folded_bias(wrapper)
        folded, unfolded, gain = self._steps(wrapper, kernel, factor, bias, input_scale)
        spec, xp = quantizer.spec, arithmetic(unfolded)
        steps = quantizer.spread(unfolded) if quantizer.grouped else unfolded
        q = xp.round(array_of(quantizer.latent(kernel)) / steps)
        q = xp.clip(q, spec.qmin, spec.qmax)
        q = q * xp.cast(xp.sign(gain), "float32")
        if quantizer.grouped:
            return q, xp.reshape(folded, (-1, folded.shape[-1])), bias
        scale = xp.reshape(folded, (-1,))
        if input_scale is not None:
            step = xp.cast(input_scale, "float64") * xp.cast(scale, "float64")
            bias = xp.round(xp.cast(bias, "float64") / step)
        return q, scale, bias

    def _steps(self, wrapper, kernel, factor, bias, input_scale):
        """Returns the steps of a kernel with the batch norm's gain `factor` (or `None`) folded in.

        Returns:
            `(folded, unfolded, gain)`: the float32 steps of the folded kernel, what they are of the
            unfolded one, and the gains, with axes as the kernel has them.
        """
        ((_, quantizer),) = wrapper.weight_quantizers
        step = array_of(quantizer.steps(kernel))
        xp = arithmetic(step)
        step = xp.cast(step, "float64")
        if not quantizer.grouped:
            # One for each channel, also where the unfolded kernel has one in all.
            step = xp.broadcast_to(step, _channel_shape(kernel, self.channel_axis))
        gain = xp.ones([1] * len(step.shape), "float64")
        if factor is not None:
            gain = xp.reshape(factor, _channel_shape(kernel, self.channel_axis))
        folded = step * xp.abs(gain)
        smallest = xp.max(folded) * DEAD_CHANNEL
        if input_scale is not None:
            limit = BIAS_LIMIT * xp.cast(input_scale, "float64")
            smallest = xp.maximum(smallest, xp.abs(xp.reshape(bias, step.shape)) / limit)
        folded = xp.cast(xp.maximum(xp.maximum(folded, smallest), SMALLEST_SCALE), "float32")
        if quantizer.grouped:
            folded = group_scale(folded)
        # The step in units of the unfolded kernel; a channel of gain 0 has only zeros.
        alive = gain != 0
        divisor = xp.where(alive, xp.abs(gain), xp.ones_like(gain))
        unfolded = xp.cast(xp.cast(folded, "float64") / divisor, "float32")
        unfolded = xp.where(alive, unfolded, xp.full_like(folded, 1e30))
        return folded, unfolded, gain

    def lower(self, wrapper, call_site, args, kwargs, input_grids, name):
        """Calls the layer with the folded kernel and bias, then the clamp."""
        integers = None
        layer = copy_layer(wrapper.layer, use_bias=True, name=name)
        plain = PlainConvolution.helps(layer)
        layer = PlainConvolution(layer) if plain else layer
        if PlainDense.helps(layer, args[0]):
            layer = PlainDense.from_config(layer.get_config())
        with undrawn(layer):
            outputs = clamp_layer(layer(*args), wrapper.call_sites[call_site].clamp, name)
        holder = layer.layer if plain else layer
        variable, axes = getattr(holder, self.kernel), PerAxis(self.channel_axis).axes
        if isinstance(self.weights, QuantSpec):
            ((_, quantizer),) = wrapper.weight_quantizers
            real = input_grids[0] is None or quantizer.grouped
            scale_in = None if real else input_grids[0].params.scale
            kernel, scale, integers = (
                ops.convert_to_numpy(v) for v in self.integer_weights(wrapper, scale_in)
            )
            q = as_integers(kernel)
            if KnownIntegers.current() is not None:
                KnownIntegers.current().keep(wrapper, scale_in, q, scale, integers)
            if quantizer.grouped:
                spread = quantizer.spread(scale.reshape(quantizer.scale_shape))
            else:
                spread = scale.reshape(_channel_shape(kernel, self.channel_axis))
            kernel = kernel * ops.convert_to_numpy(spread)
            bias = integers if real else integers * (float(scale_in) * scale)
            lowered = LoweredKernel(variable, q, scale, quantizer.spec, axes)
        else:
            kernel, bias = (ops.convert_to_numpy(v) for v in self.real_weights(wrapper))
            lowered = LoweredKernel(variable, channel_axes=axes)
        if plain:
            kernel = layer.lifted(kernel)
            if lowered.integers is not None:
                lowered = dataclasses.replace(lowered, integers=layer.lifted(lowered.integers))
        bias = layer.kept(bias) if isinstance(layer, PlainDense) else bias
        layer.set_weights([kernel, bias])
        kernels = () if self.weights is None else (lowered,)
        return Lowering(outputs, kernels, dynamic=self.dynamic, bias=integers)

    @np.errstate(all="ignore")  # As in a graph.
    def real_weights(self, wrapper):
        """Returns kernel and bias with the batch norm folded, float32, the kernel quantized."""
        ((variable, quantizer),) = wrapper.weight_quantizers
        factor, bias = _folded_bias(wrapper)
        kernel, settings = _float32(variable), {}
        if is_grouped(wrapper) and factor is not None:
            _, scale, _ = self._steps(wrapper, kernel, factor, bias, None)
            settings["scale"] = quantizer.spread(scale)
        kernel = array_of(quantizer.call(kernel, **settings))
        xp = arithmetic(kernel)
        if factor is not None:
            gain = xp.reshape(factor, _channel_shape(kernel, self.channel_axis))
            kernel = kernel * xp.cast(gain, "float32")
        if self.weights == "float16":
            kernel = quantizer.call(kernel)
        return kernel, xp.cast(bias, "float32")

    def _multiply(self, wrapper, x, kernel):
        """Runs the layer on integers, without its bias."""
        ((variable, _),) = wrapper.weight_quantizers
        weights = [(variable, kernel)]
        if wrapper.layer.use_bias:
            weights.append((wrapper.layer.bias, ops.zeros(wrapper.layer.bias.shape, x.dtype)))
        with keras.StatelessScope(state_mapping=weights, initialize_variables=False):
            return wrapper.layer.call(x)

    def get_config(self):
        as_dict = lambda spec: spec.to_dict() if isinstance(spec, QuantSpec) else spec  # noqa: E731
        return {
            "kernel": self.kernel,
            "channel_axis": self.channel_axis,
            "weights": as_dict(self.weights),
            "activations": as_dict(self.activations),
            "dynamic": self.dynamic,
            "operator": self.operator,
        }


@keras.saving.register_keras_serializable(package="tfquant")
class ReversibleEmbeddingConfig(QuantizeConfig):
    """A table that is looked up in one call and multiplied by in another.

    Its rows have a scale each, and what is looked up a grid of its own.

    Args:
        weights: `QuantSpec` of the table, for each row.
        activations: `QuantSpec` of the output.
    """

    def __init__(self, weights, activations):
        self.weights, self.activations = QuantSpec.of(weights), QuantSpec.of(activations)

    def get_weights_and_quantizers(self, layer):
        """Returns the table, and that of the way back where it is another."""
        pairs = [(layer.embeddings, AbsMax(self.weights))]
        if not layer.tie_weights:
            columns = dataclasses.replace(self.weights, granularity=PerAxis(-1))
            pairs.append((layer.reverse_embeddings, AbsMax(columns)))
        return pairs

    def get_output_quantizers(self, layer):
        """Returns one `Static`."""
        del layer
        return [Static(self.activations)]

    def lower(self, wrapper, call_site, args, kwargs, input_grids, name):
        """Calls an `Embedding`, or a `Dense` that multiplies by the table."""
        del call_site, input_grids
        variable, quantizer = wrapper.weight_quantizers[-1 if kwargs.get("reverse") else 0]
        table = ops.convert_to_numpy(quantizer.call(variable.value))
        if not kwargs.get("reverse"):
            layer = keras.layers.Embedding(*table.shape, name=name)
            outputs = layer(args[0])
            layer.set_weights([table])
            return Lowering(outputs)
        kernel = table.T if wrapper.layer.tie_weights else table
        layer = keras.layers.Dense(kernel.shape[1], use_bias=False, name=name)
        outputs = layer(args[0])
        layer.set_weights([kernel])
        scale = ops.convert_to_numpy(quantizer.params(variable.value).scale).reshape(-1)
        q = as_integers(np.rint(kernel / np.maximum(scale, SMALLEST_SCALE)))
        return Lowering(outputs, (LoweredKernel(layer.kernel, q, scale, quantizer.spec, (-1,)),))

    def get_config(self):
        return {"weights": self.weights.to_dict(), "activations": self.activations.to_dict()}


def is_grouped(wrapper) -> bool:
    """Whether the kernel of a `QuantizeWrapper` has a scale for each group of its inputs."""
    return any(getattr(q, "grouped", False) for _, q in wrapper.weight_quantizers)


def unit_product(unit) -> Product:
    """Returns what decides how a unit of a lowered model, of such a config, rounds."""
    wrapper, (x, *_), (y, *_) = unit.layer, unit.inputs, unit.outputs
    bias = bool(has_bias(wrapper))
    return wrapper.quantize_config.product(wrapper, grid_of(x).spec, y.shape, bias)


def has_bias(wrapper):
    """Returns whether a file has a bias of the wrapped layer: converters drop zeros.

    A tensor in a graph.
    """
    if PlainDense.keeps_bias(wrapper.layer):
        return np.True_
    bias = _folded_bias(wrapper)[1]
    return arithmetic(bias).any(bias != 0)


def _channel_shape(kernel, channel_axis):
    axes = {axis % len(kernel.shape) for axis in PerAxis(channel_axis).axes}
    return [size if axis in axes else 1 for axis, size in enumerate(kernel.shape)]


def _float32(variable):
    """Returns the value of a variable, an array outside of graphs."""
    value = at_hand(variable)
    return arithmetic(value).cast(value, "float32")


def _folded_bias(wrapper):
    """Returns the batch norm's gain (or `None`) and the bias behind it, flat float64."""
    known = KnownIntegers.current()
    return _fold(wrapper) if known is None else known.folded(wrapper, _fold)


@np.errstate(all="ignore")  # As in a graph.
def _fold(wrapper):
    """Computes `_folded_bias`."""
    layer, norm = wrapper.layer, wrapper.batch_norm

    def float64(variable):
        value = at_hand(variable)
        return arithmetic(value).cast(value, "float64")

    bias = float64(layer.bias) if layer.use_bias else None
    if norm is None:
        if bias is None:
            bias = np.zeros((_channels(layer, wrapper),), "float64")
        return None, bias
    variance = float64(norm.moving_variance) + norm.epsilon
    gain = 1.0 / arithmetic(variance).sqrt(variance)
    if norm.scale:
        gain = gain * float64(norm.gamma)
    shift = -float64(norm.moving_mean) * gain
    if norm.center:
        shift = shift + float64(norm.beta)
    return gain, shift if bias is None else bias * gain + shift


def _is_pointwise(layer, kernel):
    """Whether a layer is a convolution of single points, all of them, without groups."""
    strides = np.ravel(getattr(layer, "strides", ()))
    points = len(kernel.shape) > 2 and all(size == 1 for size in kernel.shape[:-2])
    return points and all(strides == 1) and getattr(layer, "groups", 1) == 1


def _channels(layer, wrapper):
    kernel = getattr(layer, wrapper.quantize_config.kernel)
    axes = PerAxis(wrapper.quantize_config.channel_axis).axes
    count = 1
    for axis in axes:
        count *= int(kernel.shape[axis])
    return count
