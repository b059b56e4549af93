"""Layers in the one form that a converter knows, or cannot look through."""

import keras
import tensorflow as tf
from keras import ops


class Barrier(keras.layers.Layer):
    """Returns its input, by an operator that no converter draws into its neighbours.

    Converters move the bias of one kernel through the next, or a product into the kernel before
    it. The tensor between them, whose range was calibrated, is gone then. Who converts takes the
    operator out of the file again.
    """

    LIMIT = 3.0e38

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        """Returns `min(x, LIMIT)`."""
        return tf.minimum(x, self.LIMIT)

    def compute_output_spec(self, x):
        """Returns a KerasTensor like `x`."""
        return keras.KerasTensor(x.shape, x.dtype)


class PlainSum(keras.layers.Layer):
    """The sum of two tensors. `keras.ops.add` reshapes what it takes for a bias at batch size 1."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, pair, previous_mask=None):
        """Returns that of `keras.layers.Add`."""
        return keras.layers.Add().compute_mask(pair, previous_mask)

    def call(self, pair):
        """Returns the sum."""
        return tf.add(*pair)

    def compute_output_spec(self, pair):
        """Returns a KerasTensor of the shape that both broadcast to."""
        return ops.add(*pair)


class PlainUnitNorm(keras.layers.Layer):
    """The norm over the last axis, in the one form that the converter knows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        """Returns vectors of length 1."""
        return tf.math.l2_normalize(x, axis=-1)
