"""What the layers around one packed matmul share."""

import keras
import numpy as np
import tensorflow as tf

from tfquant.lowbit.matmul import PackedWeights, matmul, pack
from tfquant.numerics import packing, reference


class PackedLayer(keras.layers.Layer):
    """Weights, bias and settings of one packed matmul, and the call of it.

    Args:
        depth: Rows of the weights.
        units: Columns of the weights.
        num_bits: 8, 4, 2 or 1.
        group_size: 32, 64, 128, or 0 for one scale per channel.
        use_bias: Whether a bias is added.
        activation: Name of an activation of Keras, or `None`.
        activations: What becomes of the inputs; see `tfquant.lowbit.matmul`.
        x_scale: Scale of the inputs, with `activations="static"`.
        zero_point: Zero point of the inputs, with `activations="static"`.

    Call arguments:
        inputs: Tensor.
        zero_point: Integer that takes the place of the layer's own.
    """

    def __init__(
        self,
        depth,
        units,
        *,
        num_bits=4,
        group_size=32,
        use_bias=True,
        activation=None,
        activations="per_row",
        x_scale=1.0,
        zero_point=0,
        **kwargs,
    ):
        super().__init__(trainable=False, **kwargs)
        self.supports_jit = False
        size = packing.matmul_shape(num_bits, group_size, depth, units)[-1]
        self.depth, self.units = depth, units
        self.num_bits, self.group_size = num_bits, group_size
        self.use_bias, self.activation = use_bias, activation
        self.activations, self.x_scale, self.zero_point = activations, x_scale, zero_point
        # The weights exist from the start: their shape does not depend on the input's.
        self.packed = self.add_weight(
            name="packed", shape=(size,), dtype="uint8", initializer="zeros", trainable=False
        )
        self.bias = None
        if use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(units,), dtype="float32", initializer="zeros", trainable=False
            )

    def build(self, input_shape):
        """Nothing is left to make."""

    def get_config(self):
        """The arguments of the constructor."""
        names = ("depth", "units", "num_bits", "group_size", "use_bias", "activation")
        names += ("activations", "x_scale", "zero_point")
        config = super().get_config()
        config.pop("trainable", None)
        return config | {name: getattr(self, name) for name in names}

    def _set(self, q, scale, bias):
        packed = pack(q, scale, num_bits=self.num_bits, group_size=self.group_size)
        if packed.layout != self._layout():
            raise ValueError(
                f"The weights must have the shape ({self.depth}, {self.units}). "
                f"Received: shape {np.shape(q)}."
            )
        self.packed.assign(packed.data)
        if bias is not None:
            self.bias.assign(bias)
        return self

    def _layout(self):
        names = ("num_bits", "group_size", "depth", "units")
        return {name: getattr(self, name) for name in names}

    def _matmul(self, x, zero_point):
        """The packed matmul over the last axis, with bias and activation."""
        dtype = x.dtype
        if dtype not in (tf.float32, tf.bfloat16):
            x = tf.cast(x, tf.float32)
        name = self.activation or "linear"
        y = matmul(
            x,
            PackedWeights(tf.convert_to_tensor(self.packed), **self._layout()),
            bias=None if self.bias is None else tf.convert_to_tensor(self.bias),
            activations=self.activations,
            x_scale=self.x_scale,
            zero_point=self.zero_point if zero_point is None else zero_point,
            fused=name if name in reference.FUSED else "linear",
        )
        if name not in reference.FUSED:
            y = keras.activations.get(name)(y)
        return tf.cast(y, dtype)
