"""Layers that composite layers fall into and that Keras has no layer for."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfquant")
class Split(keras.layers.Layer):
    """Cuts a tensor into parts.

    Args:
        sizes: Length of each part along `axis`.
        axis: Axis to cut.

    Call arguments:
        x: Tensor whose length along `axis` is the sum of `sizes`.

    Returns:
        List of tensors.
    """

    def __init__(self, sizes, axis: int = -1, **kwargs):
        super().__init__(**kwargs)
        self.sizes, self.axis = tuple(sizes), axis

    def call(self, x):
        """Returns the parts."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes) - 1)]
        return ops.split(x, ends, axis=self.axis)

    def get_config(self):
        return {**super().get_config(), "sizes": self.sizes, "axis": self.axis}


@keras.saving.register_keras_serializable(package="tfquant")
class Unstack(keras.layers.Layer):
    """Takes a sequence `(batch, time, ...)` apart into its time steps, a list of `(batch, ...)`."""

    def call(self, x):
        """Returns the time steps."""
        return ops.unstack(x, axis=1)


@keras.saving.register_keras_serializable(package="tfquant")
class Stack(keras.layers.Layer):
    """Puts time steps `(batch, ...)` together to a sequence `(batch, time, ...)`."""

    def call(self, steps):
        """Returns the sequence."""
        return ops.stack(steps, axis=1)


@keras.saving.register_keras_serializable(package="tfquant")
class MatMul(keras.layers.Layer):
    """Multiplies two computed tensors, `a @ b`, over their last two axes."""

    def call(self, a, b):
        """Returns the product."""
        return ops.matmul(a, b)


@keras.saving.register_keras_serializable(package="tfquant")
class Mean(keras.layers.Layer):
    """The mean over the last axis, which stays."""

    def call(self, x):
        """Returns `(..., 1)`."""
        return ops.mean(x, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="tfquant")
class InverseRoot(keras.layers.Layer):
    """Computes `1 / sqrt(x)` of what is never less than `least`, but may be rounded to it.

    Args:
        least: Number.
    """

    def __init__(self, least: float, **kwargs):
        super().__init__(**kwargs)
        self.least = least

    def call(self, x):
        """Returns the roots' inverses: finite, and so are their gradients."""
        return ops.rsqrt(ops.maximum(x, max(self.least, 1e-30)))

    def get_config(self):
        return {**super().get_config(), "least": self.least}


@keras.saving.register_keras_serializable(package="tfquant")
class Select(keras.layers.Layer):
    """Takes values of one tensor where a condition holds, and of another elsewhere."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, *inputs, **masks):
        """Returns none, as `keras.ops.where` hands no mask on."""
        del inputs, masks
        return None

    def call(self, condition, a, b):
        """Returns `a` where `condition`, else `b`."""
        return ops.where(condition, a, b)


@keras.saving.register_keras_serializable(package="tfquant")
class RepeatHeads(keras.layers.Layer):
    """Repeats each head of `(batch, heads, ...)`.

    Args:
        times: How often.
    """

    def __init__(self, times: int, **kwargs):
        super().__init__(**kwargs)
        self.times = times

    def call(self, x):
        """Returns `(batch, heads * times, ...)`."""
        return ops.repeat(x, self.times, axis=1)

    def get_config(self):
        return {**super().get_config(), "times": self.times}


@keras.saving.register_keras_serializable(package="tfquant")
class CausalMask(keras.layers.Layer):
    """Adds a number to the scores `(..., time, source)` of what lies in the future.

    Args:
        hidden: The number.
    """

    def __init__(self, hidden: float, **kwargs):
        super().__init__(**kwargs)
        self.hidden = hidden

    def call(self, x):
        """Returns scores of the shape of `x`."""
        return x + ops.cast(self.future(x), x.dtype) * self.hidden

    def future(self, x):
        """Returns `(time, source)`, whether a score is of what lies in the future."""
        time, source = ops.shape(x)[-2:]
        return ops.arange(source)[None, :] > ops.arange(time)[:, None]

    def get_config(self):
        return {**super().get_config(), "hidden": self.hidden}


@keras.saving.register_keras_serializable(package="tfquant")
class CountTokens(keras.layers.Layer):
    """Says how often each token occurs in a list of tokens.

    Args:
        depth: Number of tokens.
        once: Whether to say only whether it occurs.
    """

    def __init__(self, depth: int, once: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.depth, self.once = depth, once

    def call(self, x):
        """Returns the counts `(batch, depth)` of tokens `(batch, n)`."""
        found = ops.one_hot(ops.cast(x, "int32"), self.depth, dtype=self.compute_dtype)
        return ops.max(found, axis=-2) if self.once else ops.sum(found, axis=-2)

    def get_config(self):
        return {**super().get_config(), "depth": self.depth, "once": self.once}


@keras.saving.register_keras_serializable(package="tfquant")
class Scale(keras.layers.Layer):
    """Multiplies by a weight `factor`, one number for each channel of the last axis."""

    def build(self, input_shape):
        """Creates `factor`."""
        self.factor = self.add_weight(shape=input_shape[-1:], initializer="ones", name="factor")
        self.built = True

    def call(self, x):
        """Returns the products."""
        return x * self.factor


@keras.saving.register_keras_serializable(package="tfquant")
class Constant(keras.layers.Layer):
    """Returns a weight for every row of its input, of which only the shape is read.

    Args:
        shape: Shape of the weight, `(1, ...)`.
        value_dtype: Its dtype.
        free_axes: Axes that are cut to the length of the input's second axis.

    Raises:
        ValueError: If the layer is called on a longer input than the weight is for.
    """

    def __init__(self, shape, value_dtype: str = "float32", free_axes=(), **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.shape, self.value_dtype = tuple(shape), value_dtype
        self.free_axes = tuple(free_axes)
        self.values = self.add_weight(
            shape=self.shape,
            dtype=value_dtype,
            initializer="zeros",
            trainable=self.trainable,
            name="values",
        )
        self.supports_masking = True
        self.built = True

    @classmethod
    def of(cls, values, trainable: bool, name: str, free_axes=()):
        """Returns the layer that holds the array `values`."""
        layer = cls(values.shape, values.dtype.name, free_axes, trainable=trainable, name=name)
        layer.set_weights([values])
        return layer

    def call(self, x):
        """Returns `(batch, ...)`."""
        values = ops.convert_to_tensor(self.values)
        if self.free_axes:
            length, longest = ops.shape(x)[1], self.shape[self.free_axes[0]]
            if isinstance(length, int) and length > longest:
                raise ValueError(
                    f"'{self.name}' was read for up to {longest} steps. Received: {length} steps."
                )
            cut = [slice(length if i in self.free_axes else None) for i in range(len(self.shape))]
            values = values[tuple(cut)]
        return ops.broadcast_to(values, (ops.shape(x)[0], *ops.shape(values)[1:]))

    def compute_mask(self, inputs, previous_mask=None):
        """Returns none: constants have no mask."""
        del inputs, previous_mask
        return None

    def compute_output_spec(self, x):
        """Returns a KerasTensor of the batch, and the length, of `x`."""
        shape = [x.shape[1] if i in self.free_axes else n for i, n in enumerate(self.shape)]
        return keras.KerasTensor((x.shape[0], *shape[1:]), self.value_dtype)

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        settings = {"shape": self.shape, "value_dtype": self.value_dtype}
        return {**config, **settings, "free_axes": self.free_axes}


@keras.saving.register_keras_serializable(package="tfquant")
class Whole(Constant):
    """Returns a weight as it is, once for all rows: an output that depends on no input."""

    def call(self, x):
        """Returns the weight."""
        del x
        return ops.copy(self.values)  # A variable is a tensor to Keras, and stays one.

    def compute_output_spec(self, x):
        """Returns a KerasTensor of the weight's shape."""
        del x
        return keras.KerasTensor(self.shape, self.value_dtype)


@keras.saving.register_keras_serializable(package="tfquant")
class MaskedProduct(keras.layers.Multiply):
    """The product of tensors with masks: what one hides counts as 1, what all hide is 0.

    One grid for the ones and for values that may be a hundredth of them would lose the values: it
    is computed in float.
    """


@keras.saving.register_keras_serializable(package="tfquant")
class Unmask(keras.layers.Layer):
    """Takes the mask off a tensor whose mask travels as a tensor of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        """Returns `x`."""
        return ops.copy(x)

    def compute_mask(self, inputs, previous_mask=None):
        """Returns none."""
        del inputs, previous_mask
        return None


@keras.saving.register_keras_serializable(package="tfquant")
class Remask(keras.layers.Layer):
    """Returns the first of its two inputs, with which the second, its mask, travels from here."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, pair):
        """Returns the tensor of the pair."""
        return ops.copy(pair[0])

    def compute_mask(self, pair, previous_mask=None):
        """Returns the mask of the pair."""
        del previous_mask
        return pair[1]


@keras.saving.register_keras_serializable(package="tfquant")
class Affine(keras.layers.Layer):
    """Computes `x * factor + shift`.

    Args:
        factor: Number.
        shift: Number.
    """

    def __init__(self, factor: float = 1.0, shift: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.shift = factor, shift

    def call(self, x):
        """Returns the floats."""
        x = ops.cast(x, self.compute_dtype)
        if self.shift:
            x = x + self.shift / self.factor
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor, "shift": self.shift}


@keras.saving.register_keras_serializable(package="tfquant")
class ChannelAffine(keras.layers.BatchNormalization):
    """Computes `x * gamma + beta`, with a number of each for every channel of the last axis.

    A batch norm whose statistics stand still at 0 and 1. It goes the way of batch norms: into the
    kernel before it, or into a kernel of ones.
    """

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "epsilon": 0.0})

    def call(self, inputs, training=None, mask=None):
        """Returns the sums."""
        del training
        return super().call(inputs, training=False, mask=mask)
