"""Keras layers whose weights are packed bits, made from integers and scales.

Each has the shape rules of the Keras layer it stands for, does not train its weights, saves as
`.keras` and as a SavedModel, and is made by `from_integers`. They run as TensorFlow ops, without
XLA (`supports_jit` is false, so that Keras does not try).
"""

import keras
import numpy as np
import tensorflow as tf

from tfquant.lowbit.matmul import PackedWeights, matmul, pack
from tfquant.lowbit.plain import dequantize
from tfquant.numerics import packing, reference


class PackedLayer(keras.layers.Layer):
    """What layers around one packed matmul share: weights, bias, settings and the call of it.

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


@keras.saving.register_keras_serializable(package="tfquant")
class PackedEinsumDense(PackedLayer):
    """`keras.layers.EinsumDense` on packed weights.

    The kernel's axes are those summed over and those that are new; an axis that input, kernel and
    output share would make many matmuls and is refused.

    Args:
        equation: As in `EinsumDense`, e.g. `"abc,cde->abde"`.
        kernel_shape: Shape of the kernel in the equation's order.
        bias_axes: Axes of the output that the bias has, or `None`.
        **settings: See `PackedDense`.
    """

    def __init__(self, equation, kernel_shape, *, bias_axes=None, **settings):
        plan = _EinsumPlan(equation, tuple(kernel_shape))
        self.equation, self.kernel_shape, self.bias_axes = equation, tuple(kernel_shape), bias_axes
        for name in ("depth", "units", "use_bias"):
            settings.pop(name, None)
        self._plan = plan
        super().__init__(plan.depth, plan.units, use_bias=bias_axes is not None, **settings)

    @classmethod
    def from_integers(cls, equation, q, scale, bias=None, *, bias_axes=None, **settings):
        """Makes the layer from integers.

        Args:
            equation: See the constructor.
            q: Integer array of the kernel's shape.
            scale: Float array `[units]` or `[groups, units]` of the kernel as a matrix, the summed
                axes before the new ones.
            bias: Array that broadcasts against the new axes, or `None`.
            bias_axes: Axes of the output that the bias has.
            **settings: See the constructor.

        Returns:
            `PackedEinsumDense`.
        """
        axes = bias_axes if bias is not None else None
        layer = cls(equation, np.shape(q), bias_axes=axes, **settings)
        plan = layer._plan
        if bias is not None:
            bias = plan.spread_bias(np.asarray(bias), bias_axes)
        return layer._set(plan.matrix(np.asarray(q)), scale, bias)

    def call(self, inputs, zero_point=None):
        """Brings the summed axes to the end, multiplies, and puts the new axes in place."""
        rank = len(inputs.shape)
        order, summed = self._plan.input_order(rank)
        x = tf.transpose(inputs, order)
        kept = tf.shape(x)[: rank - summed]
        x = tf.reshape(x, tf.concat([kept, [self.depth]], 0))
        y = self._matmul(tf.ensure_shape(x, [None] * (rank - summed) + [self.depth]), zero_point)
        y = tf.reshape(y, tf.concat([kept, self._plan.new_shape], 0))
        y = tf.transpose(y, self._plan.output_order(rank))
        return tf.ensure_shape(y, self.compute_output_shape(inputs.shape))

    def compute_output_shape(self, input_shape):
        """The shape that the equation gives."""
        return self._plan.output_shape(tuple(input_shape))

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        for name in ("depth", "units", "use_bias"):
            config.pop(name)
        names = ("equation", "kernel_shape", "bias_axes")
        return config | {name: getattr(self, name) for name in names}


class _EinsumPlan:
    """An equation read as transpose, matmul, transpose."""

    def __init__(self, equation, kernel_shape):
        left, self._out = equation.replace(" ", "").split("->")
        self._in, self._kernel = left.split(",")
        sizes = dict(zip(self._kernel, kernel_shape, strict=True))
        self._sizes = sizes
        self._summed = [a for a in self._in if a in sizes and a not in self._out]
        self._new = [a for a in self._out if a in sizes and a not in self._in]
        if sorted(self._summed + self._new) != sorted(self._kernel):
            raise ValueError(
                "Each axis of the kernel must be summed over or new in the output. "
                f"Received: equation={equation!r}."
            )
        self.new_shape = [sizes[a] for a in self._new]
        self.depth = int(np.prod([sizes[a] for a in self._summed]))
        self.units = int(np.prod(self.new_shape))

    def matrix(self, kernel):
        """The kernel as `[depth, units]`."""
        order = [self._kernel.index(a) for a in self._summed + self._new]
        return kernel.transpose(order).reshape(self.depth, self.units)

    def spread_bias(self, bias, bias_axes):
        """The bias as `[units]`; it may lack or repeat some of the new axes."""
        if not set(bias_axes) <= set(self._new):
            raise ValueError(
                f"`bias_axes` must be among the kernel's new axes {''.join(self._new)!r}. "
                f"Received: bias_axes={bias_axes!r}."
            )
        present = [a for a in self._out if a in bias_axes]
        sizes = [self._sizes[a] if a in present else 1 for a in self._new]
        return np.broadcast_to(bias.reshape(sizes), self.new_shape).reshape(-1)

    def input_order(self, rank):
        """Axes of the input with the summed ones last, and how many these are."""
        labels = self._labels(self._in, rank)
        kept = [a for a in labels if a not in self._summed]
        return [labels.index(a) for a in kept + self._summed], len(self._summed)

    def output_order(self, rank):
        """Where the kept and the new axes go."""
        made = [a for a in self._labels(self._in, rank) if a not in self._summed] + self._new
        return [made.index(a) for a in self._labels(self._out, len(made))]

    def output_shape(self, input_shape):
        """Sizes of the output's axes."""
        labels = self._labels(self._in, len(input_shape))
        sizes = dict(zip(labels, input_shape, strict=True)) | self._sizes
        rank = len(labels) - len(self._summed) + len(self._new)
        return tuple(sizes[a] for a in self._labels(self._out, rank))

    @staticmethod
    def _labels(term, rank):
        """One label for each axis; an ellipsis stands for as many as are left."""
        if "..." not in term:
            return list(term)
        before, after = term.split("...")
        missing = rank - len(before) - len(after)
        return [*before, *(f"...{i}" for i in range(missing)), *after]


@keras.saving.register_keras_serializable(package="tfquant")
class PackedConv(PackedLayer):
    """`keras.layers.Conv1D` or `Conv2D` on packed weights, channels last, as a matmul of patches.

    Args:
        filters: Output channels.
        kernel_size: One or two sizes.
        channels: Input channels.
        strides: Like `kernel_size`.
        padding: `"valid"`, `"same"`, or `"causal"` with one size.
        dilation_rate: Like `kernel_size`.
        **settings: See `PackedDense`.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        channels,
        *,
        strides=1,
        padding="valid",
        dilation_rate=1,
        **settings,
    ):
        self.filters, self.channels, self.padding = filters, channels, padding
        self.kernel_size = tuple(np.atleast_1d(kernel_size).tolist())
        rank = len(self.kernel_size)
        if rank not in (1, 2):
            raise ValueError(
                f"`kernel_size` must have one or two sizes. Received: kernel_size={kernel_size}."
            )
        if padding not in ("valid", "same", "causal") or (padding == "causal" and rank == 2):
            raise ValueError(
                "`padding` must be 'valid' or 'same', or 'causal' along one axis. "
                f"Received: padding={padding!r}, kernel_size={self.kernel_size}."
            )
        self.strides = tuple(np.broadcast_to(strides, (rank,)).tolist())
        self.dilation_rate = tuple(np.broadcast_to(dilation_rate, (rank,)).tolist())
        for name in ("depth", "units"):
            settings.pop(name, None)
        super().__init__(int(np.prod(self.kernel_size)) * channels, filters, **settings)

    @classmethod
    def from_integers(cls, q, scale, bias=None, **settings):
        """Makes the layer from integers.

        Args:
            q: Integer array `[*kernel_size, channels, filters]`.
            scale: Float array `[filters]`, or `[groups, filters]` of the kernel as a matrix.
            bias: Float array `[filters]`, or `None`.
            **settings: See the constructor.

        Returns:
            `PackedConv`.
        """
        *kernel_size, channels, filters = np.shape(q)
        layer = cls(filters, kernel_size, channels, use_bias=bias is not None, **settings)
        return layer._set(np.reshape(q, (-1, filters)), scale, bias)

    def call(self, inputs, zero_point=None):
        """Cuts patches and multiplies them; a 1x1 kernel needs no patches."""
        if set(self.kernel_size + self.strides) == {1}:
            return self._matmul(inputs, zero_point)
        one_axis = len(self.kernel_size) == 1
        x = inputs
        if self.padding == "causal":
            x = tf.pad(x, [[0, 0], [self._reach(0), 0], [0, 0]])
        x = x[:, None] if one_axis else x
        lead = (1,) if one_axis else ()
        patches = tf.image.extract_patches(
            x,
            sizes=(1, *lead, *self.kernel_size, 1),
            strides=(1, *lead, *self.strides, 1),
            rates=(1, *lead, *self.dilation_rate, 1),
            padding="SAME" if self.padding == "same" else "VALID",
        )
        patches = tf.ensure_shape(patches, (*patches.shape[:-1], self.depth))
        y = self._matmul(patches, zero_point)
        return y[:, 0] if one_axis else y

    def _reach(self, axis):
        """How far a kernel reaches beyond its first value."""
        return (self.kernel_size[axis] - 1) * self.dilation_rate[axis]

    def compute_output_shape(self, input_shape):
        """As of a convolution."""
        batch, *sizes, _ = input_shape
        out = []
        for axis, (size, stride) in enumerate(zip(sizes, self.strides, strict=True)):
            if size is not None:
                reach = self._reach(axis) if self.padding == "valid" else 0
                size = (size - reach - 1) // stride + 1
            out.append(size)
        return (batch, *out, self.filters)

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        for name in ("depth", "units"):
            config.pop(name)
        names = ("filters", "kernel_size", "channels", "strides", "padding", "dilation_rate")
        return config | {name: getattr(self, name) for name in names}


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
