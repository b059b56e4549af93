"""A packed table of rows."""

import keras
import numpy as np
import tensorflow as tf

from tfquant.lowbit.plain import dequantize
from tfquant.numerics import packing


@keras.saving.register_keras_serializable(package="tfquant")
class PackedEmbedding(keras.layers.Layer):
    """`keras.layers.Embedding` on packed rows; only the rows looked up are dequantized.

        y = scale * (q - zero_point)

    Args:
        input_dim: Rows.
        output_dim: Values in a row.
        num_bits: 8, 4, 2 or 1.
        group_size: Values of a row that share a scale; 0 is all of them.
        shared_scale: Whether all rows have the same scales.
        zero_point: The integer of real zero, in [-2^(num_bits-1), 2^(num_bits-1) - 1].
        mask_zero: As of `Embedding`.
    """

    def __init__(
        self,
        input_dim,
        output_dim,
        *,
        num_bits=4,
        group_size=0,
        shared_scale=False,
        zero_point=0,
        mask_zero=False,
        **kwargs,
    ):
        super().__init__(trainable=False, **kwargs)
        self.supports_jit = False
        self.supports_masking = mask_zero
        self.input_dim, self.output_dim = input_dim, output_dim
        self.num_bits, self.group_size = num_bits, group_size
        self.shared_scale, self.zero_point = shared_scale, zero_point
        self.mask_zero = mask_zero
        half = 2 ** (num_bits - 1)
        if not -half <= zero_point < half:
            raise ValueError(
                f"`zero_point` must lie in [{-half}, {half - 1}] for num_bits={num_bits}. "
                f"Received: zero_point={zero_point}."
            )
        self._group = group_size or output_dim
        width, groups = -(-output_dim * num_bits // 8), -(-output_dim // self._group)
        self.packed = self.add_weight(
            name="packed",
            shape=(input_dim, width),
            dtype="uint8",
            initializer="zeros",
            trainable=False,
        )
        self.scale = self.add_weight(
            name="scale",
            shape=(1 if shared_scale else input_dim, groups),
            dtype="float32",
            initializer="ones",
            trainable=False,
        )

    @classmethod
    def from_integers(cls, q, scale, **settings):
        """Makes the layer from integers.

        Args:
            q: Signed integer array `[input_dim, output_dim]`.
            scale: Positive float array `[input_dim, groups]`, or `[1, groups]` with
                `shared_scale`.
            **settings: See the constructor.

        Returns:
            `PackedEmbedding`.
        """
        layer = cls(*np.shape(q), **settings)
        layer.packed.assign(packing.pack(np.asarray(q) + 2 ** (layer.num_bits - 1), layer.num_bits))
        layer.scale.assign(scale)
        return layer

    def build(self, input_shape):
        """Nothing is left to make."""

    def call(self, inputs):
        """Gathers packed rows and dequantizes them."""
        indices = tf.reshape(tf.cast(inputs, tf.int64), (-1,))
        scale = tf.convert_to_tensor(self.scale)
        if self.shared_scale:
            scale = tf.repeat(scale, tf.size(indices), axis=0)
        else:
            scale = tf.gather(scale, indices)
        zero_point = None
        if self.zero_point:
            zero_point = tf.fill(tf.shape(scale), float(self.zero_point + 2 ** (self.num_bits - 1)))
        rows = dequantize(
            tf.gather(tf.convert_to_tensor(self.packed), indices),
            scale,
            num_bits=self.num_bits,
            columns=self.output_dim,
            column_group=self._group,
            zero_point=zero_point,
        )
        shape = tf.concat([tf.shape(inputs), [self.output_dim]], 0)
        y = tf.reshape(tf.cast(rows, self.compute_dtype), shape)
        return tf.ensure_shape(y, self.compute_output_shape(inputs.shape))

    def compute_mask(self, inputs, mask=None):
        """As of `Embedding`."""
        return keras.ops.not_equal(inputs, 0) if self.mask_zero else None

    def compute_output_shape(self, input_shape):
        """One axis more."""
        return (*input_shape, self.output_dim)

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("trainable", None)
        names = ("input_dim", "output_dim", "num_bits", "group_size", "shared_scale")
        names += ("zero_point", "mask_zero")
        return config | {name: getattr(self, name) for name in names}
