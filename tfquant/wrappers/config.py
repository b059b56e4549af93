"""Which weights and outputs of a layer are quantized, and how the device computes it."""

import abc

import keras

from tfquant.layers.copy import copy_layer, transfer_weights, undrawn
from tfquant.wrappers.lowering import LoweredKernel, Lowering, as_integers, clamp_layer


class QuantizeConfig(abc.ABC):
    """Says how one layer is quantized. Subclass it to quantize a layer of your own.

    Only `get_weights_and_quantizers` and `get_output_quantizers` must be written. A config holds
    settings, no state: it may serve several layers, and is saved with the model. Register it with
    `keras.saving.register_keras_serializable`, as any Keras object that is to be loaded again.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my")
    class ScaleConfig(tfq.QuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(layer.factor, tfq.quantizers.AbsMax(tfq.QuantSpec(8, symmetric=True)))]

        def get_output_quantizers(self, layer):
            return [tfq.quantizers.Static(tfq.QuantSpec(8))]

    q = tfq.quantize_annotate_layer(Scale(), ScaleConfig())
    ```
    """

    @abc.abstractmethod
    def get_weights_and_quantizers(self, layer) -> list:
        """Returns pairs of a variable of `layer` (which is built) and a new `Quantizer` for it."""

    @abc.abstractmethod
    def get_output_quantizers(self, layer) -> list:
        """Returns one new `Quantizer` for each output of `layer`, or `None` to leave it."""

    def output_specs(self, layer) -> list:
        """Returns the `QuantSpec` of each output, `None` for one that stays float."""
        return [q and q.spec for q in self.get_output_quantizers(layer)]

    @property
    def reads_floats(self) -> bool:
        """Whether the layer computes in float on its inputs as they come, and not on a grid."""
        return False

    @property
    def reads_grids(self) -> bool:
        """Whether its real inputs are brought to a grid."""
        return not self.reads_floats

    def device_call(self, call):
        """Computes at inference what the device computes, to the last integer.

        The default returns `None`: the layer then runs in real arithmetic on quantized weights
        and its outputs are rounded, which is what a device does to within one step.

        Args:
            call: `Call`.

        Returns:
            The structure of outputs, each on its grid, or `None`.
        """
        del call
        return None

    def real_call(self, wrapper, args, kwargs):
        """Computes at inference in real arithmetic, with quantized weights.

        Args:
            wrapper: The `QuantizeWrapper`.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            The structure of outputs, not yet clamped or quantized.
        """
        return wrapper.float_call(*args, training=False, **kwargs)

    def lower(self, wrapper, call_site, args, kwargs, input_grids, name) -> Lowering:
        """Calls float layers that a converter understands, with weights on the integer grid.

        The default calls a copy of the layer whose quantized weights are dequantized ones, then the
        clamp, and says which integers they are.

        Args:
            wrapper: The `QuantizeWrapper`.
            call_site: Index of the call site.
            args: Positional arguments; tensors are KerasTensors of the float model.
            kwargs: Keyword arguments, likewise.
            input_grids: `Grid` or `None` for each tensor among `args`.
            name: Name for the copy; names are unique within the float model.

        Returns:
            `Lowering`.
        """
        del input_grids
        layer = copy_layer(wrapper.layer, name=name)
        with undrawn(layer):
            outputs = layer(*args, **kwargs)
        outputs = clamp_layer(outputs, wrapper.call_sites[call_site].clamp, name)
        transfer_weights(wrapper.layer, layer)
        kernels = []
        for new, old in zip(layer.weights, wrapper.layer.weights, strict=True):
            for quantizer in (q for variable, q in wrapper.weight_quantizers if variable is old):
                new.assign(quantizer.call(old.value))
                kernels.append(lowered_kernel(quantizer, old.value, new))
        return Lowering(outputs, tuple(kernels))

    def get_config(self) -> dict:
        """Returns the arguments of the constructor. The default is for one without arguments."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Returns the config that `get_config` described."""
        return cls(**config)


def lowered_kernel(quantizer, weight, variable) -> LoweredKernel:
    """Describes the quantized `weight` that the `variable` of a lowered layer holds."""
    if quantizer.spec is None:
        return LoweredKernel(variable)
    scale = quantizer.params(weight).scale
    integers = keras.ops.convert_to_numpy(keras.ops.round(quantizer.call(weight) / scale))
    scale = keras.ops.convert_to_numpy(scale).reshape(-1)
    return LoweredKernel(variable, as_integers(integers), scale, quantizer.spec)
