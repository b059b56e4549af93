"""Layers in the one form that a converter knows, or cannot look through."""

import keras
import tensorflow as tf
from keras import ops


class Barrier(keras.layers.Layer):
    """Returns its input, by an operator that no converter draws into its neighbours.

    Converters move the bias of one kernel through the next, or a product into the kernel before
    it. The tensor between them, whose range was calibrated, is gone then. Who converts takes the
    operator out of the file again.

    Args:
        number: Barriers of one number that read one tensor are one operator.
    """

    LIMIT = 3.0e38

    def __init__(self, number: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.number = number
        self.supports_masking = True

    def call(self, x):
        """Returns `min(x, limit)`, where no number of a model is near the limit."""
        return tf.minimum(x, self.LIMIT * (1 + self.number * 2.0**-20))

    def compute_output_spec(self, x):
        """Returns a KerasTensor like `x`."""
        return keras.KerasTensor(x.shape, x.dtype)


class OneFilter(keras.layers.Layer):
    """A convolution of sequences of one filter, as one of images of height 1.

    The converter adds the bias of one channel behind the reshape of a `Conv1D`, in an operator of
    its own.

    Args:
        layer: `Conv1D` or `Conv1DTranspose` of one filter, channels last.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(name=layer.name, **kwargs)
        config = layer.get_config()
        kind = {
            keras.layers.Conv1D: keras.layers.Conv2D,
            keras.layers.Conv1DTranspose: keras.layers.Conv2DTranspose,
        }[type(layer)]
        names = ("filters", "padding", "use_bias", "data_format")
        settings = {name: config[name] for name in names}
        self.before = 0
        if settings["padding"] == "causal":
            self.before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            settings["padding"] = "valid"
        two = {n: (1, *config[n]) for n in ("kernel_size", "strides", "dilation_rate")}
        self.layer = kind(**settings, **two, name="wide")

    def call(self, x):
        """Returns the sums."""
        x = ops.expand_dims(x, 1)
        if self.before:
            x = tf.pad(x, [[0, 0], [0, 0], [self.before, 0], [0, 0]])
        return ops.squeeze(self.layer(x), 1)


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
