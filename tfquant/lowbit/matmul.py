"""Matmul with packed weights: the ops where they are built, the reference elsewhere."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tfquant.lowbit import library
from tfquant.numerics import packing, reference

_NO_BIAS = np.zeros((0,), np.float32)


@dataclasses.dataclass(frozen=True)
class PackedWeights:
    """Low-bit weights `[depth, units]` in the format of `numerics.packing.pack_matmul`.

    Attributes:
        data: `uint8` of one axis: an array, a tensor or a variable.
        num_bits: 8, 4, 2 or 1.
        group_size: 32, 64, 128, or 0 for one scale per channel.
        depth: Rows of the weights.
        units: Columns of the weights.
    """

    data: object
    num_bits: int
    group_size: int
    depth: int
    units: int

    def __post_init__(self):
        packing.matmul_shape(self.num_bits, self.group_size, self.depth, self.units)

    @property
    def layout(self):
        """The attributes without the data, by name."""
        names = ("num_bits", "group_size", "depth", "units")
        return {name: getattr(self, name) for name in names}


def pack(q, scale, *, num_bits, group_size=0):
    """Packs integer weights for `matmul`.

    Args:
        q: Integer array `[depth, units]`.
        scale: Positive float array, `[units]` per channel or `[groups, units]`.
        num_bits: 8, 4, 2 or 1.
        group_size: 32, 64, 128, or 0 for one scale per channel.

    Returns:
        `PackedWeights` whose data is a numpy array.

    Raises:
        ValueError: If a shape, a value or a scale is out of bounds.

    Example:

    >>> w = pack(np.ones((64, 2)), np.full((2, 2), 0.5), num_bits=4, group_size=32)
    >>> matmul(tf.ones((1, 64)), w)
    <tf.Tensor: shape=(1, 2), dtype=float32, numpy=array([[32., 32.]], dtype=float32)>
    """
    q = np.asarray(q)
    data = packing.pack_matmul(q, scale, num_bits=num_bits, group_size=group_size)
    return PackedWeights(data, num_bits, group_size, *q.shape)


def matmul(
    x,
    weights,
    *,
    bias=None,
    activations="per_row",
    x_scale=1.0,
    zero_point=0,
    fused="linear",
):
    """Multiplies the last axis of `x` with packed weights.

        y = fused(x . weights + bias)

    The meaning, mode by mode, is that of `numerics.reference.lowbit_matmul`. The gradient flows to
    `x` as if its quantization were the identity (straight through), and to `bias`.

    Args:
        x: Float tensor `[..., depth]`, float32 or bfloat16.
        weights: `PackedWeights`.
        bias: Float tensor `[units]`, or `None`.
        activations: `"per_row"`, `"per_group"`, `"static"` or `"float"`; ignored by 1-bit weights.
        x_scale: Scale of the activations, `"static"` only.
        zero_point: Zero point of the activations, `"static"` only.
        fused: `"linear"`, `"relu"`, `"relu6"`, `"gelu"`, `"gelu_tanh"`, `"silu"`, `"sigmoid"` or
            `"tanh"`.

    Returns:
        Tensor `[..., units]` of the type of `x`.

    Raises:
        ValueError or tf.errors.InvalidArgumentError: If a shape or a setting is out of bounds.
    """
    x = tf.convert_to_tensor(x)
    shape = None
    # The gradient needs the last axis: a rank that is not known becomes two axes for a while.
    if x.shape.rank is None:
        shape = tf.concat([tf.shape(x)[:-1], [weights.units]], 0)
        x = tf.reshape(x, (-1, tf.shape(x)[-1]))
    if x.shape.rank and x.shape[-1] is None:
        x = tf.ensure_shape(x, [*x.shape[:-1], weights.depth])
    bias = _NO_BIAS if bias is None else tf.cast(bias, tf.float32)
    settings = {
        "num_bits": weights.num_bits,
        "group_size": weights.group_size,
        "activations": activations,
        "x_scale": float(x_scale),
        "zero_point": int(zero_point),
        "fused": fused,
    }
    ops = library.ops()
    if ops is not None:
        data = tf.convert_to_tensor(weights.data)
        y = ops.tfquant_lowbit_matmul(x, data, bias, units=weights.units, **settings)
    else:
        y = _reference_matmul(x, weights, bias, settings)
    return y if shape is None else tf.reshape(y, shape)


def unpack(weights):
    """The real weights `[depth, units]` that packed ones stand for.

    Args:
        weights: `PackedWeights`.

    Returns:
        float32 tensor.
    """
    data = tf.convert_to_tensor(weights.data)
    ops = library.ops()
    if ops is not None:
        return ops.tfquant_lowbit_unpack(data, **weights.layout)
    layout = {"k": weights.depth, "n": weights.units}
    layout |= {"num_bits": weights.num_bits, "group_size": weights.group_size}

    def real_weights(packed):
        q, scale = packing.unpack_matmul(packed, **layout)
        spread = np.repeat(scale, weights.group_size or weights.depth, axis=0)
        return q.astype(np.float32) * spread[: weights.depth]

    real = tf.numpy_function(real_weights, [data], tf.float32)
    return tf.ensure_shape(real, (weights.depth, weights.units))


@tf.RegisterGradient("Tfquant>LowbitMatmul")
def _lowbit_matmul_gradient(op, upstream):
    """Gradients to x and bias; none to the weights, which are integers."""
    x, data, bias = op.inputs
    names = ("num_bits", "group_size", "units", "activations", "x_scale", "zero_point")
    settings = {name: op.get_attr(name) for name in names}
    settings["activations"] = _text(settings["activations"])
    fused = _text(op.get_attr("fused"))
    ops = library.ops()
    if fused != "linear":
        linear = ops.tfquant_lowbit_matmul(x, data, bias, fused="linear", **settings)
        upstream = _through_fused(linear, fused, upstream)
    real = ops.tfquant_lowbit_unpack(
        data,
        num_bits=settings["num_bits"],
        group_size=settings["group_size"],
        depth=x.shape[-1],
        units=settings["units"],
    )
    to_x = tf.tensordot(upstream, tf.cast(real, upstream.dtype), [[-1], [1]])
    rows = tf.reshape(tf.cast(upstream, tf.float32), (-1, settings["units"]))
    has_bias = tf.size(bias) > 0
    to_bias = tf.cond(has_bias, lambda: tf.reduce_sum(rows, 0), lambda: tf.zeros_like(bias))
    return tf.reshape(to_x, tf.shape(x)), None, to_bias


def _through_fused(linear, fused, upstream):
    with tf.GradientTape() as tape:
        tape.watch(linear)
        y = fused_function(fused)(linear)
    return tape.gradient(y, linear, upstream)


def fused_function(fused):
    """The function of TensorFlow that a fused name stands for."""
    return {
        "linear": tf.identity,
        "relu": tf.nn.relu,
        "relu6": tf.nn.relu6,
        "gelu": functools.partial(tf.nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(tf.nn.gelu, approximate=True),
        "silu": tf.nn.silu,
        "sigmoid": tf.nn.sigmoid,
        "tanh": tf.nn.tanh,
    }[fused]


def _text(value):
    return value.decode() if isinstance(value, bytes) else value


def _reference_matmul(x, weights, bias, settings):
    """The numpy reference as a differentiable TensorFlow function."""
    units, depth = weights.units, weights.depth
    if x.shape.rank == 0 or x.shape[-1] not in (None, depth):
        raise ValueError(f"The last axis of `x` must be depth={depth}. Received: shape {x.shape}.")
    if settings["fused"] not in reference.FUSED:
        reference.fuse(np.zeros(()), settings["fused"])  # raises
    data = tf.convert_to_tensor(weights.data)

    def multiply(x, packed, bias, fused):
        unpacked = packing.unpack_matmul(
            packed,
            num_bits=weights.num_bits,
            group_size=weights.group_size,
            k=depth,
            n=units,
        )
        rows = x.astype(np.float32).reshape(-1, depth)
        y = reference.lowbit_matmul(
            rows,
            *unpacked,
            **settings | {"fused": fused.decode()},
            bias=bias if bias.size else None,
        )
        return y.astype(np.float32).reshape(*x.shape[:-1], units)

    def call(x, bias, fused):
        y = tf.numpy_function(multiply, [tf.cast(x, tf.float32), data, bias, fused], tf.float32)
        return tf.cast(tf.ensure_shape(y, [*x.shape[:-1], units]), x.dtype)

    @tf.custom_gradient
    def differentiable(x, bias):
        def gradient(upstream):
            fused = settings["fused"]
            if fused != "linear":
                upstream = _through_fused(call(x, bias, "linear"), fused, upstream)
            real = tf.cast(unpack(weights), upstream.dtype)
            rows = tf.reshape(tf.cast(upstream, tf.float32), (-1, units))
            to_bias = tf.reduce_sum(rows, 0) if bias.shape[0] else tf.zeros_like(bias)
            return tf.tensordot(upstream, real, [[-1], [1]]), to_bias

        return call(x, bias, settings["fused"]), gradient

    return differentiable(x, bias)
