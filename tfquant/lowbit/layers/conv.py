"""Packed convolutions: a matmul of patches."""

import keras
import numpy as np
import tensorflow as tf

from tfquant.lowbit.layers.layer import PackedLayer


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
