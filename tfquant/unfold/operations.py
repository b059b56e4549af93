"""Operations of `keras.ops` that are a layer by another name.

A user who writes `x + y` or `ops.matmul(x, self.kernel)` gets the integers of `Add` and `Dense`.
"""

import math

import keras
import numpy as np
from keras import layers

from tfquant.configs.elementwise import OutputConfig, SameGridConfig
from tfquant.configs.parts import ConstantConfig, MatMulConfig
from tfquant.graph.graph import real
from tfquant.layers.copy import copy_layer
from tfquant.layers.parts import Constant, MatMul, Select
from tfquant.pieces.affine import channel_affine, constants, hard_sigmoid
from tfquant.pieces.products import contract
from tfquant.registry.operations import KERNELS
from tfquant.unfold.attention import LARGE, unfold_dot_product_attention
from tfquant.wrappers import QuantizeAnnotate


def unfold_operation(operation, scheme):
    """Finds the layers that an operation stands for; see `tfquant.unfold.unfold`.

    Args:
        operation: `keras.Operation` that is no layer.
        scheme: `Scheme`.
    """
    make = OPERATIONS.get(type(operation).__name__)
    return None if make is None else make(operation, scheme)


def has_kernel(operation) -> bool:
    """Whether an operation may become kernels of integers; inputs are no obstacle."""
    if isinstance(operation, layers.InputLayer):
        return True
    name = type(operation).__name__
    return name in OPERATIONS or name in KERNELS


def _layer(make):
    """Returns the row of an operation on one tensor.

    Args:
        make: Function of the operation and the tensor that returns the layer, or `None`.
    """

    def row(operation, scheme):
        del scheme

        def call(x, *args, **kwargs):
            layer = None if args or kwargs else make(operation, x)
            return None if layer is None else QuantizeAnnotate(layer)(x)

        return call

    return row


def _binary(merge, affine=None):
    """Returns the row of an operation on two tensors, or on a tensor and constants.

    Args:
        merge: Layer of two tensors.
        affine: Function of the constants, and of whether they come first, that returns factor and
            shift of the other tensor's channels.
    """

    def row(operation, scheme):
        def call(a, b):
            tensors = [isinstance(x, keras.KerasTensor) for x in (a, b)]
            if all(tensors):
                if len(a.shape) != len(b.shape):
                    return None
                return QuantizeAnnotate(merge(name=operation.name))([a, b])
            x, constant = (a, b) if tensors[0] else (b, a)
            if not scheme.static:
                return None
            if affine is None or not _is_per_channel(x, constant) or _is_mask(merge, constant):
                shares_grid = merge in (layers.Maximum, layers.Minimum)
                config = (OutputConfig if shares_grid else ConstantConfig)(scheme.activations)
                held = _held(x, constant, operation.name, config)
                pair = [x, held] if tensors[0] else [held, x]
                return None if held is None else QuantizeAnnotate(merge(name=operation.name))(pair)
            factor, shift = affine(constants(constant), not tensors[0])
            trainable = isinstance(constant, keras.Variable) and constant.trainable
            return channel_affine(x, factor, shift, trainable, operation.name)

        return call

    return row


def _held(x, constant, name, config):
    """Returns a constant of the rank of `x`, `None` if it depends on the row of the batch."""
    values = keras.ops.convert_to_numpy(constant).astype(np.float32)
    values = values.reshape((1,) * (len(x.shape) - values.ndim) + values.shape)
    if values.ndim != len(x.shape) or len(values) != 1 or "int" in x.dtype:
        return None
    layer = Constant.of(values, _trains(constant), f"{name}_constant")
    return QuantizeAnnotate(layer, config)(x)


def _is_per_channel(x, constant):
    shape = np.shape(constant)
    return (
        len(shape) <= len(x.shape)
        and (np.prod(shape, dtype=int) == 1 or shape[-1] == x.shape[-1])
        and np.prod(shape[:-1], dtype=int) == 1
    )


def _is_mask(merge, constant):
    """Whether some channels are hidden by large numbers, which are no shift of others."""
    sums = merge in (layers.Add, layers.Subtract)
    return sums and np.size(constant) > 1 and np.abs(constants(constant)).max() >= LARGE


def _matmul(operation, scheme):
    """Products of two tensors, or of a tensor and a matrix of weights."""

    def call(a, b):
        if isinstance(a, keras.KerasTensor) and isinstance(b, keras.KerasTensor):
            if min(len(a.shape), len(b.shape)) < 3 or len(real([a, b])) < 2:
                return None
            config = MatMulConfig(scheme.activations) if scheme.static else None
            return QuantizeAnnotate(MatMul(name=operation.name), config)(a, b)
        if not isinstance(a, keras.KerasTensor) or len(np.shape(b)) != 2:
            return None
        layer = layers.Dense(
            np.shape(b)[1], use_bias=False, trainable=_trains(b), name=operation.name
        )
        return _filled(layer, a, b)

    return call


def _einsum(operation, scheme):
    """A product of a tensor and weights, as einsum layers compute it, or of two tensors."""

    def call(*operands):
        if len(operands) != 2 or "->" not in operation.subscripts or "." in operation.subscripts:
            return _ellipsis(operands) if "->" in operation.subscripts else None
        inputs, out = operation.subscripts.replace(" ", "").split("->")
        terms = inputs.split(",")
        if not isinstance(operands[0], keras.KerasTensor):
            operands, terms = operands[::-1], terms[::-1]
        x, weights = operands
        if isinstance(weights, keras.KerasTensor):
            return contract(f"{','.join(terms)}->{out}", x, weights, operation.name, scheme)
        if terms[0][0] != out[0]:
            return None
        values = keras.ops.convert_to_numpy(weights)
        alone = [i for i, axis in enumerate(terms[1]) if axis not in terms[0] + out]
        values = values.sum(axis=tuple(alone))
        terms[1] = "".join(axis for i, axis in enumerate(terms[1]) if i not in alone)
        if any(axis in out for axis in terms[1] if axis in terms[0]):  # No matrix for all.
            config = OutputConfig(scheme.activations)
            constant = Constant.of(values[None], _trains(weights), f"{operation.name}_constant")
            held = QuantizeAnnotate(constant, config)(x)
            equation = f"{terms[0]},{terms[0][0]}{terms[1]}->{out}"
            return contract(equation, x, held, operation.name, scheme)
        return _dense(x, f"{','.join(terms)}->{out}", weights, values)

    def _ellipsis(operands):
        x, *weights = operands
        if len(weights) != 1 or not isinstance(x, keras.KerasTensor):
            return None
        if isinstance(weights[0], keras.KerasTensor):
            return None
        values = keras.ops.convert_to_numpy(weights[0])
        return _dense(x, operation.subscripts, weights[0], values)

    def _dense(x, equation, weights, values):
        y = keras.ops.einsum(equation, x, values)
        layer = layers.EinsumDense(
            equation, y.shape[1:], trainable=_trains(weights), name=operation.name
        )
        return _filled(layer, x, values)

    return call


def _filled(layer, x, kernel):
    layer.build(x.shape)
    layer.set_weights([keras.ops.convert_to_numpy(kernel)])
    return QuantizeAnnotate(layer)(x)


def _trains(x):
    return isinstance(x, keras.Variable) and x.trainable


def _where(operation, scheme):
    """A choice between two tensors, or a tensor and constants, on one grid."""

    def call(condition, a, b):
        found = [x for x in (a, b) if isinstance(x, keras.KerasTensor)]
        if not scheme.static or len(real(found)) < len(found):
            return None
        like = next(iter(found), condition)
        if not isinstance(condition, keras.KerasTensor):
            condition = _held_condition(like, condition, f"{operation.name}_condition")
            if condition is None:
                return None
        config = OutputConfig(scheme.activations)
        names = f"{operation.name}_then", f"{operation.name}_else"
        a, b = (
            x if isinstance(x, keras.KerasTensor) else _held(like, x, name, config)
            for x, name in zip((a, b), names, strict=True)
        )
        if a is None or b is None or condition.dtype != "bool":
            return None
        return QuantizeAnnotate(Select(name=operation.name), SameGridConfig())(condition, a, b)

    return call


def _held_condition(x, constant, name):
    """Returns a constant condition of the rank of `x`, `None` if it is another for each row."""
    values = keras.ops.convert_to_numpy(constant)
    values = values.reshape((1,) * (len(x.shape) - values.ndim) + values.shape)
    if values.ndim != len(x.shape) or len(values) != 1 or values.dtype != bool:
        return None
    return Constant.of(values, False, name)(x)


def _full(number):
    """Returns the row of an operation that makes a constant of the shape of a tensor."""

    def row(operation, scheme):
        def call(x, dtype=None):
            shape, real_numbers = x.shape[1:], "float" in x.dtype
            if None in shape or not real_numbers or dtype not in (None, x.dtype):
                return None
            values = np.full((1, *shape), number, np.float32)
            return _held(x, values, operation.name, ConstantConfig(scheme.activations))

        return call if scheme.static else None

    return row


def _power(exponent_of):
    """Returns the row of a power: small whole exponents are products.

    Args:
        exponent_of: Function of what follows the tensor in the call.
    """

    def row(operation, scheme):
        def call(x, *args):
            exponent = exponent_of(*args)
            if exponent not in (2, 3) or not scheme.static:
                return None
            y = x
            for number in range(exponent - 1):
                name = operation.name if number == exponent - 2 else f"{operation.name}_square"
                y = QuantizeAnnotate(layers.Multiply(name=name))([y, x])
            return y

        return call

    return row


def _exponent(x):
    """Returns a constant exponent as an integer, `None` where it is none."""
    if isinstance(x, keras.KerasTensor) or np.size(x) != 1:
        return None
    value = float(constants(x)[0])
    return int(value) if value.is_integer() else None


def _resize(operation, x):
    """Returns the layer of an operation on images, whose output lies on the grid of its input."""
    if len(x.shape) != 4 or "float" not in x.dtype:
        return None
    names = ("interpolation", "antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
    settings = {name: getattr(operation, name) for name in (*names, "fill_mode", "fill_value")}
    size, data_format = operation.size, operation.data_format
    return layers.Resizing(*size, data_format=data_format, name=operation.name, **settings)


def _cast(operation, x):
    return layers.Identity(name=operation.name) if operation.dtype == x.dtype else None


def _move(operation, x):
    rank = len(x.shape)
    as_axes = lambda v: [a % rank for a in ([v] if isinstance(v, int) else v)]  # noqa: E731
    source, destination = as_axes(operation.source), as_axes(operation.destination)
    axes = [axis for axis in range(rank) if axis not in source]
    for target, axis in sorted(zip(destination, source, strict=True)):
        axes.insert(target, axis)
    return layers.Permute(axes[1:], name=operation.name) if axes[0] == 0 else None


def _negative(operation, scheme):
    call = lambda x: channel_affine(x, -1.0, 0.0, False, operation.name)  # noqa: E731
    return call if scheme.static else None


def _extract_patches(operation, scheme):
    """Patches beside each other, as a move of values; Keras convolves with ones and zeros."""
    del scheme
    sizes = operation.size if isinstance(operation.size, tuple) else (operation.size,) * 2
    steps = operation.strides or sizes
    steps = steps if isinstance(steps, tuple) else (steps,) * 2

    def call(x):
        channels_last = operation.data_format in (None, "channels_last")
        if len(x.shape) != 4 or None in x.shape[1:] or not channels_last:
            return None
        height, width, channels = x.shape[1:]
        whole = height % sizes[0] == 0 and width % sizes[1] == 0
        if steps != sizes or operation.dilation_rate not in (1, (1, 1)) or not whole:
            return None
        rows, columns = height // sizes[0], width // sizes[1]
        for name, layer in (
            ("parts", layers.Reshape((rows, sizes[0], columns, sizes[1], channels))),
            ("order", layers.Permute((1, 3, 2, 4, 5))),
            ("joined", layers.Reshape((rows, columns, sizes[0] * sizes[1] * channels))),
        ):
            x = QuantizeAnnotate(copy_layer(layer, name=f"{operation.name}_{name}"))(x)
        return x

    return call


def _hard_sigmoid(operation, scheme):
    return (lambda x: hard_sigmoid(x, operation.name)) if scheme.static else None


def _concatenate(operation, scheme):
    del scheme
    return lambda xs: QuantizeAnnotate(
        layers.Concatenate(axis=operation.axis, name=operation.name)
    )(list(xs))


def _reshape(operation, x):
    """Returns the layer of an operation that keeps the batch and the order of values."""
    shape = operation(x).shape
    if shape[0] != x.shape[0] or (x.shape[0] is not None and None in shape):
        return None
    known = [[n for n in sizes[1:] if n is not None] for sizes in (shape, x.shape)]
    given = getattr(operation, "newshape", ())
    if None not in x.shape[1:] and len(known[0]) == len(shape) - 2 and -1 in given[1:]:
        open_size, rest = divmod(math.prod(known[1]), math.prod(known[0]))
        shape = (shape[0], *(open_size if n is None else n for n in shape[1:]))
        return None if rest else layers.Reshape(shape[1:], name=operation.name)
    if len(known[0]) - len(shape) != len(known[1]) - len(x.shape):
        return None  # It makes a free length part of the batch, or the other way round.
    if math.prod(known[0]) != math.prod(known[1]):
        return None  # It takes from the batch, or adds to it.
    if list(shape[1:]).count(None) > 1:
        return None
    target = tuple(-1 if n is None else n for n in shape[1:])
    return layers.Reshape(target, name=operation.name)


def _permute(operation, x):
    axes = operation.axes or tuple(range(len(x.shape)))[::-1]
    return layers.Permute(axes[1:], name=operation.name) if axes[0] == 0 else None


def _pool(one_dimensional, two_dimensional):
    """Returns the row of a reduction over space."""

    def make(operation, x):
        axes = operation.axis if isinstance(operation.axis, (tuple, list)) else (operation.axis,)
        axes = None if None in axes else sorted(axis % len(x.shape) for axis in axes)
        found = {(3, 1): one_dimensional, (4, 2): two_dimensional}
        if axes not in ([1], [1, 2]) or (len(x.shape), len(axes)) not in found:
            return None
        layer = found[len(x.shape), len(axes)]
        return layer(keepdims=operation.keepdims, name=operation.name)

    return make


def _windows(one_dimensional, two_dimensional):
    """Returns the row of a pool."""

    def make(operation, x):
        layer = {3: one_dimensional, 4: two_dimensional}.get(len(x.shape))
        if layer is None:
            return None
        names = ("pool_size", "strides", "padding", "data_format", "name")
        return layer(**{name: getattr(operation, name) for name in names})

    return make


def _diff(operation, scheme):
    """Differences of neighbours."""

    def call(x):
        axis = operation.axis % len(x.shape)
        if axis == 0:
            return None
        for number in range(operation.n):
            ends = [(slice(None),) * axis + (part,) for part in (slice(1, None), slice(None, -1))]
            name = f"{operation.name}_{number}" if number else operation.name
            x = QuantizeAnnotate(layers.Subtract(name=name))([x[end] for end in ends])
        return x

    return call if scheme.static else None


def _factor(factor):
    """Returns the row of an operation that multiplies by a number."""

    def row(operation, scheme):
        name = operation.name
        return (lambda x: channel_affine(x, factor, 0.0, False, name)) if scheme.static else None

    return row


def _activation(name):
    return lambda operation, x: layers.Activation(name, name=operation.name)


def _gelu(operation, x):
    del x
    return None if operation.approximate else layers.Activation("gelu", name=operation.name)


def _celu(operation, x):
    del x
    return layers.Activation("elu", name=operation.name) if operation.alpha == 1 else None


def _hard_tanh(operation, scheme):
    del operation
    return (lambda x: keras.ops.clip(x, -1.0, 1.0)) if scheme.static else None


def _exp_minus_one(operation, scheme):
    del operation
    return (lambda x: keras.ops.exp(x) - 1.0) if scheme.static else None


def _tanh_shrink(operation, scheme):
    """What a hyperbolic tangent is short of its argument."""

    def call(x):
        y = QuantizeAnnotate(layers.Activation("tanh", name=f"{operation.name}_tanh"))(x)
        return QuantizeAnnotate(layers.Subtract(name=operation.name))([x, y])

    return call if scheme.static else None


def _glu(operation, scheme):
    """A half of the values, times the sigmoid of the other."""

    def call(x):
        a, b = keras.ops.split(x, 2, axis=operation.axis)
        gate = QuantizeAnnotate(layers.Activation("sigmoid", name=f"{operation.name}_gate"))(b)
        return QuantizeAnnotate(layers.Multiply(name=operation.name))([a, gate])

    return call if scheme.static else None


def _clip(operation, x):
    del x
    bounds = operation.x_min, operation.x_max
    return layers.Activation("relu6", name=operation.name) if bounds == (0, 6) else None


def _swap(operation, x):
    axes = list(range(len(x.shape)))
    a, b = (axis % len(axes) for axis in (operation.axis1, operation.axis2))
    axes[a], axes[b] = axes[b], axes[a]
    return layers.Permute(axes[1:], name=operation.name) if axes[0] == 0 else None


def _over_last_axis(name):
    """Returns the row of an activation that looks at whole vectors."""

    def make(operation, x):
        last = operation.axis in (-1, len(x.shape) - 1)
        return layers.Activation(name, name=operation.name) if last else None

    return make


def _normalize(operation, x):
    """Returns the layer of a norm; what `epsilon` does to vectors of such lengths is lost."""
    last = operation.axis in (-1, len(x.shape) - 1)
    if not last or operation.order != 2 or (operation.epsilon or 0.0) > 1e-6:
        return None
    return layers.UnitNormalization(name=operation.name)


def _divide(operation, scheme):
    """Division by constants: a kernel multiplies by one for each channel.

    LiteRT's DIV of two integers fails where a divisor rounds to zero: such quotients are float.
    """

    def call(x, divisor):
        if not isinstance(x, keras.KerasTensor) or isinstance(divisor, keras.KerasTensor):
            return None
        if not scheme.static or not _is_per_channel(x, divisor):
            return None
        return channel_affine(x, 1.0 / constants(divisor), 0.0, False, operation.name)

    return call


OPERATIONS = {
    "Add": _binary(layers.Add, lambda v, first: (1.0, v)),
    "Subtract": _binary(layers.Subtract, lambda v, first: (-1.0, v) if first else (1.0, -v)),
    "Multiply": _binary(layers.Multiply, lambda v, first: (v, 0.0)),
    "Maximum": _binary(layers.Maximum),
    "Minimum": _binary(layers.Minimum),
    "Divide": _divide,
    "TrueDivide": _divide,
    "Matmul": _matmul,
    "Dot": _matmul,
    "Einsum": _einsum,
    "DotProductAttention": unfold_dot_product_attention,
    "Negative": _negative,
    "Where": _where,
    "ZerosLike": _full(0.0),
    "OnesLike": _full(1.0),
    "Square": _power(lambda: 2),
    "Power": _power(_exponent),
    "Concatenate": _concatenate,
    "Reshape": _layer(_reshape),
    "Squeeze": _layer(_reshape),
    "ExpandDims": _layer(_reshape),
    "Cast": _layer(_cast),
    "Transpose": _layer(_permute),
    "Moveaxis": _layer(_move),
    "Swapaxes": _layer(_swap),
    "Celu": _layer(_celu),
    "Clip": _layer(_clip),
    "Expm1": _exp_minus_one,
    "Glu": _glu,
    "HardTanh": _hard_tanh,
    "TanhShrink": _tanh_shrink,
    "Mean": _layer(_pool(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D)),
    "Max": _layer(_pool(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D)),
    "AveragePool": _layer(_windows(layers.AveragePooling1D, layers.AveragePooling2D)),
    "MaxPool": _layer(_windows(layers.MaxPooling1D, layers.MaxPooling2D)),
    "Diff": _diff,
    "Deg2rad": _factor(math.pi / 180),
    "Rad2deg": _factor(180 / math.pi),
    "Resize": _layer(_resize),
    "Relu": _layer(_activation("relu")),
    "Relu6": _layer(_activation("relu6")),
    "Sigmoid": _layer(_activation("sigmoid")),
    "Tanh": _layer(_activation("tanh")),
    "Silu": _layer(_activation("silu")),
    "ExtractPatches": _extract_patches,
    "HardSigmoid": _hard_sigmoid,
    "HardSilu": _layer(_activation("hard_swish")),
    "Gelu": _layer(_gelu),
    "LeakyRelu": _layer(
        lambda operation, x: layers.LeakyReLU(operation.negative_slope, name=operation.name)
    ),
    "LogSoftmax": _layer(_over_last_axis("log_softmax")),
    "Normalize": _layer(_normalize),
    "Softmax": _layer(_over_last_axis("softmax")),
}
