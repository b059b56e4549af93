"""Layers in the one form that a converter knows, or cannot look through."""

import keras
import numpy as np
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


class PlainConvolution(keras.layers.Layer):
    """A convolution in the form of one operator: of images, dilated by an attribute.

    Of a `Conv1D` of one filter the converter adds the bias behind a reshape, in an operator of its
    own. TensorFlow moves dilated values to the batch and back; where two convolutions of one rate
    read one tensor, they share the move, and the converter finds no dilated convolution in either.

    Args:
        layer: `Conv1D`, `Conv2D`, or `Conv1DTranspose` of one filter, channels last.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(name=layer.name, **kwargs)
        config, transposed = layer.get_config(), isinstance(layer, keras.layers.Conv1DTranspose)
        self.of_sequences = len(layer.kernel_size) == 1
        self.before = 0
        names = ("filters", "padding", "use_bias", "data_format")
        settings = {name: config[name] for name in names}
        if settings["padding"] == "causal":
            self.before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            settings["padding"] = "valid"
        for name in ("kernel_size", "strides", "dilation_rate"):
            settings[name] = (1, *config[name]) if self.of_sequences else tuple(config[name])
        kind = keras.layers.Conv2DTranspose if transposed else keras.layers.Conv2D
        self.layer = kind(**settings, name="wide")

    @staticmethod
    def helps(layer) -> bool:
        """Whether a layer needs this form; it has one group of channels."""
        of_sequences = type(layer) in (keras.layers.Conv1D, keras.layers.Conv1DTranspose)
        if of_sequences and layer.filters == 1:
            return getattr(layer, "groups", 1) == 1
        plain = type(layer) in (keras.layers.Conv1D, keras.layers.Conv2D)
        return plain and layer.groups == 1 and max(layer.dilation_rate) > 1

    def lifted(self, kernel):
        """Returns a kernel of sequences as one of images."""
        return kernel[None] if self.of_sequences else kernel

    def call(self, x):
        """Returns the sums."""
        if self.of_sequences:
            x = ops.expand_dims(x, 1)
        if self.before:
            x = tf.pad(x, [[0, 0], [0, 0], [self.before, 0], [0, 0]])
        y = self._convolve(x) if max(self.layer.dilation_rate) > 1 else self.layer(x)
        return ops.squeeze(y, 1) if self.of_sequences else y

    def build(self, input_shape):
        """Creates the weights."""
        if self.of_sequences:
            batch, length, channels = input_shape
            length = None if length is None else length + self.before
            input_shape = (batch, 1, length, channels)
        self.layer.build(input_shape)
        self.built = True

    def _convolve(self, x):
        layer = self.layer
        kernel, bias = (ops.convert_to_tensor(v) for v in (layer.kernel, layer.bias))
        y = tf.nn.conv2d(
            x, kernel, layer.strides, layer.padding.upper(), "NHWC", layer.dilation_rate
        )
        return tf.nn.bias_add(y, bias)


class PlainDense(keras.layers.Dense):
    """A dense layer of sequences or images that multiplies matrices.

    Where a length or the batch is free, the converter leaves the bias of `keras.layers.Dense`
    behind a reshape, where no kernel applies it; a kernel of one input without a bias it multiplies
    elementwise.
    """

    # Far below the step of any bias.
    LEAST = np.float32(1e-30)

    @staticmethod
    def helps(layer, x) -> bool:
        """Whether a layer that is called on `x` may need this form."""
        return type(layer) is keras.layers.Dense and (len(x.shape) > 2 or x.shape[-1] == 1)

    @staticmethod
    def keeps_bias(layer) -> bool:
        """Whether the file has a bias of a built dense layer even where it is zero everywhere."""
        return isinstance(layer, keras.layers.Dense) and layer.kernel.shape[0] == 1

    def kept(self, bias):
        """Returns a bias that the converter does not take for none, where there is to be one."""
        return np.where(bias == 0, self.LEAST, bias) if self.keeps_bias(self) else bias

    def call(self, x):
        """Returns the sums."""
        sizes = list(x.shape[1:-1])
        if sizes.count(None) > 1 or (None not in x.shape and x.shape[-1] > 1):
            return super().call(x)
        kernel, bias = (ops.convert_to_tensor(v) for v in (self.kernel, self.bias))
        y = tf.matmul(tf.reshape(tf.cast(x, kernel.dtype), (-1, x.shape[-1])), kernel)
        if None in sizes:
            batch, *sizes = tf.unstack(tf.shape(x))[:-1]
        else:
            batch = -1 if x.shape[0] is None else x.shape[0]
        return tf.reshape(tf.nn.bias_add(y, bias), (batch, *sizes, self.units))


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


class PlainInverseRoot(keras.layers.Layer):
    """`1 / sqrt(x)`, without the bound that keeps training finite."""

    def call(self, x):
        """Returns the roots' inverses."""
        return tf.math.rsqrt(x)

    def compute_output_spec(self, x):
        """Returns a KerasTensor like `x`."""
        return keras.KerasTensor(x.shape, x.dtype)


class PlainUnitNorm(keras.layers.Layer):
    """The norm over the last axis, in the one form that the converter knows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        """Returns vectors of length 1."""
        return tf.math.l2_normalize(x, axis=-1)
