"""A packed matmul over the last axis."""

import keras
import numpy as np

from tfquant.lowbit.layers.layer import PackedLayer


@keras.saving.register_keras_serializable(package="tfquant")
class PackedDense(PackedLayer):
    """`keras.layers.Dense` on packed weights.

    Example:

    >>> layer = PackedDense.from_integers(np.ones((64, 2)), np.full((2, 2), 0.5))
    >>> layer(np.ones((1, 64)))
    <tf.Tensor: shape=(1, 2), dtype=float32, numpy=array([[32., 32.]], dtype=float32)>
    """

    @classmethod
    def from_integers(cls, q, scale, bias=None, **settings):
        """Makes the layer from integers.

        Args:
            q: Integer array `[depth, units]`.
            scale: Float array `[units]` per channel, or `[groups, units]`.
            bias: Float array `[units]`, or `None`.
            **settings: See the constructor.

        Returns:
            `PackedDense`.
        """
        return cls(*np.shape(q), use_bias=bias is not None, **settings)._set(q, scale, bias)

    def call(self, inputs, zero_point=None):
        """Multiplies the last axis."""
        return self._matmul(inputs, zero_point)

    def compute_output_shape(self, input_shape):
        """The last axis becomes `units`."""
        return (*input_shape[:-1], self.units)
