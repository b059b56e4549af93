"""How the layers that composite layers fall into are quantized."""

import keras
from keras import ops

from tfquant.numerics import QuantParams, QuantSpec
from tfquant.numerics.fixed_point import requantize_fixed_point
from tfquant.quantizers import (
    AbsMax,
    Grid,
    MaskInput,
    SoftmaxInput,
    from_steps,
    grid_of,
    on_grid,
    steps_of,
)
from tfquant.registry.elementwise import OutputConfig, SumConfig
from tfquant.wrappers import QuantizeConfig


@keras.saving.register_keras_serializable(package="tfquant")
class ConstantConfig(QuantizeConfig):
    """A constant operand, which the file stores with a scale of its own.

    Args:
        activations: `QuantSpec` of what it is combined with.
    """

    def __init__(self, activations):
        as_spec = QuantSpec.from_dict(activations) if isinstance(activations, dict) else activations
        self.activations = as_spec

    def get_weights_and_quantizers(self, layer):
        """Returns the values with one scale."""
        spec = QuantSpec(self.activations.stored_bits, symmetric=True, narrow_range=True)
        return [(layer.values, AbsMax(spec))]

    def get_output_quantizers(self, layer):
        """Returns nothing: the values lie on their own grid."""
        del layer
        return []

    def device_call(self, wrapper, call_site, args, kwargs):
        """Returns the values on their grid."""
        del call_site
        ((variable, quantizer),) = wrapper.weight_quantizers
        scale = ops.reshape(quantizer.params(variable.value).scale, ())
        values = wrapper.float_call(*args, training=False, **kwargs)
        return on_grid(values, Grid(QuantParams(scale, 0.0), quantizer.spec))

    def get_config(self):
        return {"activations": self.activations.to_dict()}


@keras.saving.register_keras_serializable(package="tfquant")
class MatMulConfig(OutputConfig):
    """Products of two computed tensors, summed in 32 bits and scaled once.

    BATCH_MATMUL runs in LiteRT's built-in kernel: fixed-point requantization.
    """

    def device_call(self, wrapper, call_site, args, kwargs):
        """Computes `(a - za) @ (b - zb) * (sa * sb / so)`."""
        grids = [grid_of(x) for x in args]
        output = next(iter(wrapper.output_quantizers[call_site]), None)
        if None in grids or output is None or not output.calibrated:
            return None
        if output.spec.num_bits > 8 or any(grid.spec.num_bits > 8 for grid in grids):
            return None
        accumulator = wrapper.call_exactly(*(steps_of(x) for x in args), **kwargs)
        sa, sb, so = (
            ops.cast(params.scale, "float64")
            for params in (grids[0].params, grids[1].params, output.params())
        )
        steps = requantize_fixed_point(accumulator, sa * sb / so)
        return from_steps(ops.cast(steps, "float32"), output)


@keras.saving.register_keras_serializable(package="tfquant")
class ScoresConfig(MatMulConfig):
    """Attention scores, straight in front of a softmax."""

    def get_output_quantizers(self, layer):
        """Returns one `SoftmaxInput`."""
        del layer
        return [SoftmaxInput(self.activations)]


@keras.saving.register_keras_serializable(package="tfquant")
class GivenMaskConfig(OutputConfig):
    """A mask that the model is given, as numbers that are added to scores."""

    @property
    def reads_floats(self) -> bool:
        """Whether the mask comes without a grid: it does."""
        return True

    def get_output_quantizers(self, layer):
        """Returns one `MaskInput`."""
        del layer
        return [MaskInput(self.activations)]


@keras.saving.register_keras_serializable(package="tfquant")
class MaskedScoresConfig(SumConfig):
    """Attention scores plus a mask, in front of a softmax."""

    def get_output_quantizers(self, layer):
        """Returns one `SoftmaxInput`."""
        del layer
        return [SoftmaxInput(self.activations)]
