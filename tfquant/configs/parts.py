"""How the layers that composite layers fall into are quantized."""

import keras
import numpy as np
from keras import ops

from tfquant.configs.elementwise import OutputConfig, SumConfig
from tfquant.numerics import QuantParams, QuantSpec, choose_params
from tfquant.quantizers import STORED, AbsMax, Grid, MaskInput, SoftmaxInput, on_grid
from tfquant.wrappers import QuantizeConfig


@keras.saving.register_keras_serializable(package="tfquant")
class ConstantConfig(QuantizeConfig):
    """A constant operand, which the file stores with a scale of its own.

    Args:
        activations: `QuantSpec` of what it is combined with.
    """

    def __init__(self, activations):
        self.activations = QuantSpec.of(activations)

    def get_weights_and_quantizers(self, layer):
        """Returns the values with one scale."""
        spec = QuantSpec(self.activations.stored_bits, symmetric=True, narrow_range=True)
        return [(layer.values, AbsMax(spec))]

    def get_output_quantizers(self, layer):
        """Returns nothing: the values lie on their own grid."""
        del layer
        return []

    def device_call(self, call):
        """Returns the values on their grid."""
        ((variable, quantizer),) = call.wrapper.weight_quantizers
        scale = ops.reshape(quantizer.params(variable.value).scale, ())
        values = call.wrapper.float_call(*call.args, training=False, **call.kwargs)
        return on_grid(values, Grid(QuantParams(scale, 0.0), quantizer.spec, group=STORED))

    def get_config(self):
        return {"activations": self.activations.to_dict()}


@keras.saving.register_keras_serializable(package="tfquant")
class MatMulConfig(OutputConfig):
    """Products of two computed tensors, summed and scaled once."""

    def __init__(self, activations, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "BATCH_MATMUL"})

    def settings(self, call):
        """Returns the sums: `(a - za) @ (b - zb)`."""
        dtype = "float32" if call.output.spec.stored_bits == 8 else "float64"
        steps = [ops.cast(grid.steps, dtype) for grid in call.inputs]
        return {"sums": call.wrapper.call_exactly(*steps, **call.kwargs)}


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
class CausalMaskConfig(OutputConfig):
    """Attention scores plus the constant of a `CausalMask`, in front of a softmax."""

    def __init__(self, activations, **kwargs):
        super().__init__(activations, **{**kwargs, "operator": "ADD"})

    def get_output_quantizers(self, layer):
        """Returns one `SoftmaxInput`."""
        del layer
        return [SoftmaxInput(self.activations)]

    def device_call(self, call):
        """Adds the integers that the file holds, on the grid of 0 and the number."""
        if not call.computes(self.operator):
            return None
        bits = self.activations.stored_bits
        spec = QuantSpec(bits, symmetric=bits > 8)
        params = choose_params(call.layer.hidden, 0.0, spec)
        step = np.rint(call.layer.hidden / params.scale)
        (x,) = call.inputs
        future = ops.cast(call.layer.future(x.steps), "float32")
        held = QuantParams(
            ops.cast(params.scale, "float32"), ops.cast(params.zero_point, "float32")
        )
        return call.compute(self.operator, (x, Grid(held, spec, future * float(step))))


@keras.saving.register_keras_serializable(package="tfquant")
class MaskedScoresConfig(SumConfig):
    """Attention scores plus a mask, in front of a softmax."""

    def get_output_quantizers(self, layer):
        """Returns one `SoftmaxInput`."""
        del layer
        return [SoftmaxInput(self.activations)]
