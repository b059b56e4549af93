"""`DynamicKernel`: a layer on integers that are found when it runs."""

import keras

from tfquant.lowbit.layers import PackedDense
from tfquant.quantizers import Dynamic


@keras.saving.register_keras_serializable(package="tfquant")
class DynamicKernel(keras.layers.Layer):
    """Rounds real values to integers, and multiplies these by the packed integers of `layer`.

    With `scale` and `zero_point` those of `quantizer`, one for each vector:

        q = quantize(x)
        y = scale * (layer(q) - zero_point * column_sum) + bias

    These are the integers of a `QuantizeWrapper` whose input is quantized when it runs, and its
    products, added up in another order.

    Args:
        layer: `PackedDense` without a bias, for static activations of scale 1.
        quantizer: `Dynamic`, vector by vector.

    Call arguments:
        x: Real tensor.
    """

    def __init__(self, layer: PackedDense, quantizer: Dynamic, **kwargs):
        super().__init__(autocast=False, trainable=False, **kwargs)
        self.supports_jit = layer.supports_jit
        self.supports_masking = True
        self.layer, self.quantizer = layer, quantizer
        vector = lambda name: self.add_weight(  # noqa: E731
            name=name, shape=(layer.units,), dtype="float32", initializer="zeros", trainable=False
        )
        self.column_sum, self.bias = vector("column_sum"), vector("bias")
        self.built = True

    def set_parameters(self, column_sum, bias) -> None:
        """Sets what is not in `layer`.

        Args:
            column_sum: Sum of the real weights of each output.
            bias: Real bias of each output.
        """
        self.column_sum.assign(column_sum)
        self.bias.assign(bias)

    def call(self, x):
        """Rounds and multiplies; see the class."""
        x = keras.ops.cast(x, "float32")
        steps, params = self.quantizer.steps(x)
        sums = self.layer(steps)
        sums = sums - params.zero_point * self.column_sum.value
        return sums * params.scale + self.bias.value

    def compute_output_shape(self, input_shape):
        """Returns that of `layer`."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        parts = {"layer": serialize(self.layer), "quantizer": serialize(self.quantizer)}
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("layer", "quantizer"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        for name in ("autocast", "trainable"):
            config.pop(name, None)
        return cls(**config)
