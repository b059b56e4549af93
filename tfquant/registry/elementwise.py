"""Layers without a kernel: sums, products, activations, pooling, and what only moves values."""

import keras
from keras import ops, tree

from tfquant.numerics import QuantParams, QuantSpec
from tfquant.quantizers import Fixed, Grid, Static, grid_of, on_grid
from tfquant.registry.linear import clamp_layer
from tfquant.wrappers import Lowering, QuantizeConfig
from tfquant.wrappers.config import copy_layer
from tfquant.wrappers.wrapper import clamp


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

    def lower(self, wrapper, args, kwargs, input_grids, name):
        """Calls a copy of the layer, then the clamp."""
        lowered = super().lower(wrapper, args, kwargs, input_grids, name)
        if wrapper.clamp is None:
            return lowered
        return Lowering(clamp_layer(lowered.outputs, wrapper.clamp))

    def get_config(self):
        return {
            "activations": self.activations.to_dict(),
            "outputs": self.outputs,
            "fixed": self.fixed,
        }


@keras.saving.register_keras_serializable(package="tfquant")
class ProductConfig(OutputConfig):
    """Elementwise products: the integers are multiplied, then scaled once."""

    def device_call(self, wrapper, args, kwargs, output_quantizers):
        """Computes `(a - za) * (b - zb) * (sa * sb / so)`."""
        grids = [grid_of(x) for x in tree.flatten(args)]
        output = output_quantizers[0] if output_quantizers else None
        if len(grids) != 2 or None in grids or output is None or not output.calibrated:
            return None
        (sa, sb), params = (grid.params.scale for grid in grids), output.params()
        integers = tree.map_structure(lambda x: ops.round(x / grid_of(x).params.scale), args)
        steps = wrapper.call_layer(*integers, weights=[], **kwargs) * (sa * sb / params.scale)
        steps = clamp(steps, wrapper.clamp, params.scale)
        return from_steps(ops.round(steps), params, output.spec)


@keras.saving.register_keras_serializable(package="tfquant")
class MeanConfig(OutputConfig):
    """Means over space: the integers are summed, then scaled once."""

    def device_call(self, wrapper, args, kwargs, output_quantizers):
        """Computes `sum(q - z) * (s / (so * count))`."""
        grid = grid_of(args[0])
        output = output_quantizers[0] if output_quantizers else None
        if grid is None or output is None or not output.calibrated:
            return None
        params = output.params()
        integers = ops.round(args[0] / grid.params.scale)
        mean = wrapper.call_layer(integers, weights=[], **kwargs)
        count = ops.cast(ops.size(integers) / ops.size(mean), "float32")
        total = ops.round(mean * count)
        steps = total * (grid.params.scale / params.scale / count)
        return from_steps(ops.round(steps), params, output.spec)


@keras.saving.register_keras_serializable(package="tfquant")
class SwishConfig(OutputConfig):
    """`x * sigmoid(x)`: the device computes a LOGISTIC of fixed grid, then a product."""

    def device_call(self, wrapper, args, kwargs, output_quantizers):
        """Rounds the sigmoid to its fixed grid before the product."""
        x, grid = args[0], grid_of(args[0])
        output = output_quantizers[0] if output_quantizers else None
        if grid is None or output is None or not output.calibrated:
            return None
        gate_scale = 2.0**-self.activations.num_bits if grid.spec.num_bits == 8 else 2.0**-15
        gate = ops.clip(ops.round(ops.sigmoid(x) / gate_scale), 0, 1 / gate_scale - 1)
        params = output.params()
        integers = ops.round(x / grid.params.scale)
        steps = integers * gate * (grid.params.scale * gate_scale / params.scale)
        return from_steps(ops.round(steps), params, output.spec)


@keras.saving.register_keras_serializable(package="tfquant")
class SameGridConfig(QuantizeConfig):
    """Layers whose output lies on the grid of their input: they move values, or pick some.

    The TFLite 8-bit quantization specification asks it of MAX_POOL_2D, RESHAPE, PAD,
    CONCATENATION and their like. All inputs share one grid.
    """

    def get_weights_and_quantizers(self, layer):
        """Returns nothing."""
        del layer
        return []

    def get_output_quantizers(self, layer):
        """Returns nothing: the grid is the input's."""
        del layer
        return []

    def device_call(self, wrapper, args, kwargs, output_quantizers):
        """Runs the layer and passes the grid on."""
        del output_quantizers
        grids = [grid_of(x) for x in tree.flatten(args) if hasattr(x, "shape")]
        if not grids or None in grids:
            return None
        outputs = self.on_values(wrapper, args, kwargs, grids[0])
        return tree.map_structure(lambda y: on_grid(y, grids[0]), outputs)

    def on_values(self, wrapper, args, kwargs, grid):
        """Returns the layer's outputs, real values of `grid`."""
        del grid
        # A layer that does nothing returns its input: the grid must not be noted on a tensor that
        # another branch still reads, hence the identity.
        return tree.map_structure(
            lambda y: ops.copy(y) if any(y is x for x in tree.flatten(args)) else y,
            wrapper.call_layer(*args, weights=[], training=False, **kwargs),
        )


@keras.saving.register_keras_serializable(package="tfquant")
class AverageConfig(SameGridConfig):
    """Average pooling: LiteRT divides the sum of the raw integers, half away from zero."""

    def on_values(self, wrapper, args, kwargs, grid):
        """Computes `round(mean(q))` on raw integers."""
        scale, zero_point = grid.params
        integers = ops.round(args[0] / scale)
        mean = wrapper.call_layer(integers, weights=[], **kwargs) + zero_point
        # A mean of up to 10,000 integers is a multiple of 1e-4: what is closer to a half is one.
        q = ops.sign(mean) * ops.floor(ops.abs(mean) + (0.5 + 1e-5))
        return (q - zero_point) * scale


def from_steps(steps, params: QuantParams, spec: QuantSpec):
    """Returns real values on the grid from rounded steps `q - zero_point`."""
    q = ops.clip(steps + params.zero_point, spec.qmin, spec.qmax)
    return on_grid((q - params.zero_point) * params.scale, Grid(params, spec))
