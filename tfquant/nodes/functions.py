"""Functions of one tensor, sums, products, means and norms: real arithmetic between grids.

ONNX Runtime fuses DequantizeLinear, the function and QuantizeLinear where it has a kernel.
"""

import keras
import numpy as np
from keras import activations, layers

from tfquant.configs.elementwise import axis_of
from tfquant.layers import parts
from tfquant.nodes.site import Site, weight, writes
from tfquant.nodes.writer import Value
from tfquant.wrappers.operation import HeldWeight, Place


def _one(operator, **attributes):
    return lambda w, x: w.add(operator, [x], **attributes)


def _clip(low, high):
    def write(w, x):
        return w.add("Clip", [x, *(w.constant(np.float32(v)) for v in (low, high))])

    return write


def _silu(w, x):
    return w.add("Mul", [x, w.add("Sigmoid", [x])])


def _hard_sigmoid(w, x):
    return w.add("HardSigmoid", [x], alpha=1.0 / 6.0, beta=0.5)


def _leaky(slope):
    return lambda w, x: w.add("LeakyRelu", [x], alpha=float(slope))


def gelu(approximate):
    """Returns what writes a gelu."""
    return _one("Gelu", approximate="tanh" if approximate else "none")


# What writes an activation: functions of the writer and the name of a tensor.
FUNCTIONS = {
    activations.elu: _one("Elu"),
    activations.exponential: _one("Exp"),
    activations.gelu: gelu(False),
    activations.hard_sigmoid: _hard_sigmoid,
    activations.hard_swish: _one("HardSwish"),
    activations.leaky_relu: _leaky(0.2),
    activations.linear: lambda w, x: x,
    activations.log_softmax: _one("LogSoftmax", axis=-1),
    activations.mish: _one("Mish"),
    activations.relu: _one("Relu"),
    activations.relu6: _clip(0.0, 6.0),
    activations.selu: _one("Selu"),
    activations.sigmoid: _one("Sigmoid"),
    activations.silu: _silu,
    activations.softmax: _one("Softmax", axis=-1),
    activations.softplus: _one("Softplus"),
    activations.softsign: _one("Softsign"),
    activations.tanh: _one("Tanh"),
}

# Clamps that the grid behind them does, or a Clip of integers.
_CLAMPS = {activations.relu: (0.0, None), activations.relu6: (0.0, 6.0)}

# Operations that are one function, by the name of their type.
_OPERATIONS = {
    "Abs": _one("Abs"),
    "Absolute": _one("Abs"),
    "Elu": _one("Elu"),
    "Erf": _one("Erf"),
    "Exp": _one("Exp"),
    "HardSigmoid": _hard_sigmoid,
    "HardSilu": _one("HardSwish"),
    "Log": _one("Log"),
    "Negative": _one("Neg"),
    "Reciprocal": _one("Reciprocal"),
    "Relu6": _clip(0.0, 6.0),
    "Rsqrt": lambda w, x: w.add("Reciprocal", [w.add("Sqrt", [x])]),
    "Sigmoid": _one("Sigmoid"),
    "Silu": _silu,
    "Softplus": _one("Softplus"),
    "Sqrt": _one("Sqrt"),
    "Square": lambda w, x: w.add("Mul", [x, x]),
    "Tanh": _one("Tanh"),
}

_VECTORS = (activations.softmax, activations.log_softmax)


def _apply(site: Site, write) -> Value:
    """Returns a function of one tensor, in whatever layout it is."""
    return site.value(write(site.writer, site.writer.real(site.x)), site.x.first)


@writes(layers.Activation)
def activation(site):
    """One of `FUNCTIONS`."""
    function = site.layer.activation
    if function in _CLAMPS:
        return _clamp(site, _CLAMPS[function])
    if function in _VECTORS:
        return _along(site, "Softmax" if function is activations.softmax else "LogSoftmax", -1)
    if function is activations.linear:
        return site.x
    return _apply(site, writer_of(function, site))


def writer_of(function, site: Site):
    """Returns what writes the activation of a layer; raises `ValueError` where nothing does."""
    if function not in FUNCTIONS:
        raise ValueError(
            f"An activation among {', '.join(f.__name__ for f in FUNCTIONS)} is expected. "
            f"Received: '{getattr(function, '__name__', function)}' of layer '{site.name}'."
        )
    return FUNCTIONS[function]


def _clamp(site, bounds):
    """Clips to `bounds`, by the grid where there is one."""
    (step, *_), x = site.steps, site.x
    if step is None:
        return site.writer.clamped(x, bounds)
    return site.writer.quantize(x, step, site.name, bounds)


@writes(layers.ReLU)
def relu(site):
    """A clamp, or a leaky one."""
    layer = site.layer
    if layer.threshold or (layer.negative_slope and layer.max_value is not None):
        raise ValueError(
            "A ReLU without a threshold is expected, and no slope below a largest value. "
            f"Received: layer '{site.name}'."
        )
    if layer.negative_slope:
        return _apply(site, _leaky(layer.negative_slope))
    return _clamp(site, (0.0, layer.max_value))


@writes("Relu")
def relu_operation(site):
    """`keras.ops.relu`."""
    return _clamp(site, (0.0, None))


@writes("Clip")
def clip_operation(site):
    """`keras.ops.clip`."""
    operation = site.operation
    return _clamp(site, (operation.x_min, operation.x_max))


@writes(layers.LeakyReLU)
def leaky_relu(site):
    """LeakyRelu."""
    return _apply(site, _leaky(site.layer.negative_slope))


@writes(layers.ELU)
def elu(site):
    """Elu."""
    return _apply(site, _one("Elu", alpha=float(site.layer.alpha)))


@writes(layers.PReLU)
def prelu(site):
    """PRelu, whose slopes are broadcast."""
    kernel = site.unit.kernels[0] if site.unit and site.unit.kernels else None
    alpha = weight(kernel.variable if kernel else site.layer.alpha)
    slopes = site.writer.held(alpha[None], (1, *alpha.shape))
    (x, alpha), first = site.writer.reals([site.x, slopes])
    return site.value(site.writer.add("PRelu", [x, alpha]), first)


@writes(layers.Softmax, "Softmax")
def softmax(site):
    """Softmax along one axis."""
    return _along(site, "Softmax", axis_of(site.layer))


@writes("LogSoftmax")
def log_softmax(site):
    """LogSoftmax along one axis."""
    return _along(site, "LogSoftmax", axis_of(site.layer))


def _along(site, operator, axis):
    if not isinstance(axis, int) or site.kwargs.get("mask") is not None:
        raise ValueError(f"One axis and no mask are expected. Received: layer '{site.name}'.")
    w, x = site.writer, site.x
    axis = w.axis(axis, len(x.shape), x.first)
    return site.value(w.add(operator, [w.real(x)], axis=axis), x.first)


@writes("Gelu")
def gelu_operation(site):
    """`keras.ops.gelu`."""
    return _apply(site, gelu(site.operation.approximate))


for _name, _write in _OPERATIONS.items():
    writes(_name)(lambda site, write=_write: _apply(site, write))


def _merge(operator):
    """Returns what writes an operator of several tensors, two at a time."""

    def write(site):
        w = site.writer
        kind = site.outputs[0].dtype
        (y, *others), first = w.reals([_retyped(site, x, kind) for x in _operands(site)])
        for x in others:
            y = w.add(operator, [y, x])
        return site.value(y, first)

    return write


def _operands(site):
    """Returns the tensors of a call; numbers among the arguments are constants."""
    arguments = getattr(site.layer, "arguments", None)
    if arguments is None and site.operation is None:
        return site.xs
    xs, found = site.xs, []
    for x in site.args if arguments is None else arguments:
        if isinstance(x, Value):
            found.append(x)
        elif isinstance(x, Place):
            found.append(xs[x.index])
        elif isinstance(x, HeldWeight):
            found.append(_as_value(site, weight(site.layer.held[x.index])))
        else:
            found.append(_as_value(site, np.asarray(x, np.float32)))
    return found


def _as_value(site, values):
    rank = max(len(x.shape) for x in site.xs)
    values = values.astype(np.float32).reshape((1,) * (rank - values.ndim) + values.shape)
    return site.writer.held(values, values.shape)


writes(layers.Add, "Add")(_merge("Add"))
writes(layers.Subtract, "Subtract")(_merge("Sub"))
writes(layers.Multiply, parts.MaskedProduct, "Multiply")(_merge("Mul"))
writes(layers.Maximum, "Maximum")(_merge("Max"))
writes(layers.Minimum, "Minimum")(_merge("Min"))
writes("Divide", "TrueDivide")(_merge("Div"))
writes("Power")(_merge("Pow"))


_COMPARISONS = {
    "Equal": "Equal",
    "Greater": "Greater",
    "GreaterEqual": "GreaterOrEqual",
    "Less": "Less",
    "LessEqual": "LessOrEqual",
    "LogicalAnd": "And",
    "LogicalOr": "Or",
}


def _compare(operator):
    """Returns what writes a comparison, whose numbers have the type of the tensor."""

    def write(site):
        kind = site.xs[0].dtype
        names, first = site.writer.reals([_retyped(site, x, kind) for x in _operands(site)])
        return site.value(site.writer.add(operator, names), first)

    return write


def _retyped(site, x, kind):
    """Returns an operand in the type that the operation computes in."""
    w, kind = site.writer, np.dtype("float32" if "float" in kind else kind)
    if x.step is not None or x.dtype == kind.name:
        return x
    if x.held is not None:
        return w.held(x.held.astype(kind), x.shape)
    to = w.onnx.helper.np_dtype_to_tensor_dtype(kind)
    return Value(x.shape, real=w.add("Cast", [x.real], to=to), first=x.first, dtype=kind.name)


for _name, _operator in _COMPARISONS.items():
    writes(_name)(_compare(_operator))


@writes("NotEqual")
def not_equal(site):
    """Equal, and Not."""
    y = _compare("Equal")(site)
    return site.value(site.writer.add("Not", [y.real]), y.first)


@writes("Cast")
def cast(site):
    """Cast."""
    w, kind = site.writer, site.outputs[0].dtype
    to = w.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return site.value(w.add("Cast", [w.real(site.x)], to=to), site.x.first)


@writes("OnesLike", "ZerosLike")
def like(site):
    """ConstantOfShape."""
    w, kind = site.writer, np.dtype(site.outputs[0].dtype)
    number = [type(site.operation).__name__ == "OnesLike"]
    value = w.onnx.numpy_helper.from_array(np.array(number).astype(kind))
    shape = w.add("Shape", [w.real(w.layout(site.x, False))])
    return site.value(w.add("ConstantOfShape", [shape], value=value))


@writes("Cumsum")
def running_sum(site):
    """CumSum."""
    w, x = site.writer, site.writer.layout(site.x, False)
    axis = w.constant(np.array(site.operation.axis, np.int64))
    return site.value(w.add("CumSum", [w.real(x), axis]))


@writes(layers.Average)
def average(site):
    """Mean."""
    names, first = site.writer.reals(site.xs)
    return site.value(site.writer.add("Mean", names), first)


@writes(parts.MatMul, "Matmul")
def matmul(site):
    """A product of two computed tensors."""
    w = site.writer
    names = [w.real(w.layout(x, False)) for x in _operands(site)]
    return site.value(w.add("MatMul", names))


@writes(parts.Scale)
def scale(site):
    """A product with a number for each channel."""
    kernel = site.unit.kernels[0] if site.unit and site.unit.kernels else None
    return _by_channel(site, "Mul", weight(kernel.variable if kernel else site.layer.factor))


def _by_channel(site, operator, values, x=None):
    w, x = site.writer, site.x if x is None else x
    shape = (1,) * (len(x.shape) - 1) + values.shape
    names, first = w.reals([x, w.held(values.astype(np.float32).reshape(shape), shape)])
    return site.value(w.add(operator, names), first)


@writes(parts.Affine)
def affine(site):
    """`x * factor + shift`, shifted first as the layer does."""
    layer, w, x = site.layer, site.writer, site.x
    y = w.add("Cast", [w.real(x)], to=1) if "float" not in str(x.dtype) else w.real(x)
    if layer.shift:
        y = w.add("Add", [y, w.constant(np.float32(layer.shift / layer.factor))])
    return site.value(w.add("Mul", [y, w.constant(np.float32(layer.factor))]), x.first)


@writes(layers.Rescaling)
def rescaling(site):
    """`x * scale + offset`."""
    w, x, layer = site.writer, site.x, site.layer
    y = w.add("Cast", [w.real(x)], to=1) if "float" not in str(x.dtype) else w.real(x)
    x = Value(x.shape, real=y, first=x.first)
    rank = len(x.shape)
    for operator, number in (("Mul", layer.scale), ("Add", layer.offset)):
        values = np.asarray(number, np.float32)
        values = values.reshape((1,) * (rank - values.ndim) + values.shape)
        names, first = w.reals([x, w.held(values, values.shape)])
        x = Value(site.shape, real=w.add(operator, names), first=first)
    return x


@writes(layers.Normalization)
def normalization(site):
    """`(x - mean) / max(sqrt(variance), epsilon)`."""
    w, layer, x = site.writer, site.layer, site.x
    if layer.invert:
        raise ValueError(f"A Normalization forwards is expected. Received: layer '{site.name}'.")
    y = w.add("Cast", [w.real(x)], to=1) if "float" not in str(x.dtype) else w.real(x)
    x, rank = Value(x.shape, real=y, first=x.first), len(x.shape)
    mean, variance = np.asarray(layer.mean, np.float32), np.asarray(layer.variance, np.float32)
    deviation = np.maximum(np.sqrt(variance), np.float32(keras.config.epsilon()))
    for operator, values in (("Sub", mean), ("Div", deviation)):
        values = values.reshape((1,) * (rank - values.ndim) + values.shape)
        names, first = w.reals([x, w.held(values, values.shape)])
        x = Value(site.shape, real=w.add(operator, names), first=first)
    return x


@writes(layers.BatchNormalization, parts.ChannelAffine)
def batch_norm(site):
    """`x * gain + shift`, of the moving statistics."""
    layer, rank = site.layer, len(site.shape)
    if layer.axis % rank != rank - 1:
        raise ValueError(f"Channels last are expected. Received: layer '{site.name}'.")
    mean, variance = (
        weight(v).astype(np.float64) for v in (layer.moving_mean, layer.moving_variance)
    )
    gain = 1.0 / np.sqrt(variance + layer.epsilon)
    gain = gain * weight(layer.gamma) if layer.scale else gain
    shift = (weight(layer.beta) if layer.center else 0.0) - mean * gain
    x = _by_channel(site, "Mul", gain)
    return _by_channel(site, "Add", shift, x)


@writes(layers.LayerNormalization)
def layer_norm(site):
    """LayerNormalization over the last axes."""
    layer, w = site.layer, site.writer
    x, rank = w.layout(site.x, False), len(site.shape)
    axes = sorted(a % rank for a in np.atleast_1d(layer.axis))
    if axes != list(range(axes[0], rank)):
        raise ValueError(f"The last axes are expected. Received: layer '{site.name}'.")
    shape = [x.shape[a] for a in axes]
    gain = weight(layer.gamma) if layer.scale else np.ones(shape, np.float32)
    names = [w.real(x), w.constant(gain.reshape(shape))]
    if layer.center:
        names.append(w.constant(weight(layer.beta).reshape(shape)))
    y = w.add("LayerNormalization", names, axis=axes[0], epsilon=float(layer.epsilon))
    return site.value(y)


@writes(parts.Mean, "Mean")
def mean(site):
    """ReduceMean: of the layer over the last axis, of the operation over any."""
    return _reduce(site, "ReduceMean")


@writes("Sum")
def total(site):
    """ReduceSum."""
    return _reduce(site, "ReduceSum")


@writes("Max")
def largest(site):
    """ReduceMax."""
    return _reduce(site, "ReduceMax")


@writes("Min")
def smallest(site):
    """ReduceMin."""
    return _reduce(site, "ReduceMin")


def _reduce(site, operator):
    w, x = site.writer, site.writer.layout(site.x, False)
    operation, rank = site.operation, len(x.shape)
    axis = -1 if operation is None else operation.axis
    axes = range(rank) if axis is None else np.atleast_1d(axis)
    axes = np.array([a % rank for a in axes], np.int64)
    keep = 1 if operation is None else int(operation.keepdims)
    return site.value(w.add(operator, [w.real(x), w.constant(axes)], keepdims=keep))


@writes(parts.InverseRoot)
def inverse_root(site):
    """`1 / sqrt(max(x, least))`."""
    w, least = site.writer, np.float32(max(site.layer.least, 1e-30))
    x = w.add("Max", [w.real(site.x), w.constant(least)])
    return site.value(w.add("Reciprocal", [w.add("Sqrt", [x])]), site.x.first)


@writes(layers.UnitNormalization)
def unit_norm(site):
    """LpNormalization along one axis."""
    w, x = site.writer, site.writer.layout(site.x, False)
    (axis,) = np.atleast_1d(site.layer.axis)
    return site.value(w.add("LpNormalization", [w.real(x)], axis=int(axis), p=2))


@writes(parts.CausalMask)
def causal_mask(site):
    """Adds the number to what lies in the future: a constant."""
    w, x = site.writer, site.writer.layout(site.x, False)
    time, source = x.shape[-2:]
    if None in (time, source):
        raise ValueError(f"Sequences of known length are expected. Received: '{site.name}'.")
    future = np.arange(source)[None] > np.arange(time)[:, None]
    values = (future * np.float32(site.layer.hidden)).astype(np.float32)
    return site.value(w.add("Add", [w.real(x), w.constant(values)]))
