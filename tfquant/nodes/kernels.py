"""Layers that multiply by a kernel, and tables: DequantizeLinear of integers that we hold."""

import keras
import numpy as np
from keras import layers

from tfquant.configs.elementwise import TableConfig
from tfquant.layers import parts
from tfquant.nodes.functions import writer_of
from tfquant.nodes.site import Site, weight, writes
from tfquant.nodes.writer import Step, Value
from tfquant.numerics import QuantParams
from tfquant.quantizers import Grid

# Blocks of weights that ONNX Runtime multiplies by as they are: MatMulNBits.
FEWEST_IN_BLOCK = 16


def kernel_of(site: Site, order, shape=None) -> np.ndarray:
    """Returns the integers of the kernel, or its real values where it has none.

    Args:
        site: The call.
        order: Order of axes that the operator reads them in.
        shape: Shape that they have before, or `None` for the layer's.
    """
    kernel = site.unit.kernels[0] if site.unit and site.unit.kernels else None
    values = weight(site.layer.kernel)
    if kernel is not None and kernel.integers is not None:
        values = kernel.integers.reshape(values.shape)
    elif kernel is not None:
        values = weight(kernel.variable).reshape(values.shape)
    elif site.unit is not None:
        values = weight(_lowered_kernel(site)).reshape(values.shape)
    return np.ascontiguousarray(values.reshape(shape or values.shape).transpose(order))


def _lowered_kernel(site):
    """Returns the kernel with its batch norm folded, of a call whose weights stay float."""
    return site.unit.layer.quantize_config.real_weights(site.unit.layer)[0]


def written_kernel(site: Site, values, axis: int, blocked: bool = False) -> str:
    """Writes a kernel; returns the name of its real values.

    Args:
        site: The call.
        values: From `kernel_of`, in the operator's layout.
        axis: Axis of the output channels.
        blocked: Whether groups of inputs share a scale, along the axis before.
    """
    w, kernel = site.writer, site.unit.kernels[0] if site.unit and site.unit.kernels else None
    if kernel is None:
        return w.constant(np.asarray(values, np.float32))
    if kernel.spec is None:
        half = w.constant(values.astype(np.float16), f"{site.name}/kernel")
        return w.add("Cast", [half], to=w.onnx.TensorProto.FLOAT)
    narrow = kernel.spec.num_bits <= 4
    q = (w.nibbles if narrow else w.own)(values, f"{site.name}/kernel")
    if blocked:
        scale = np.asarray(kernel.scale, np.float32).reshape(-1, values.shape[axis])
        settings = {"axis": axis - 1, "block_size": kernel.group_size}
    else:
        scale, settings = channel_scale(site, values.shape[axis]), {"axis": axis}
    zeros = [] if narrow else [w.own(np.zeros(scale.shape))]
    return w.add("DequantizeLinear", [q, w.constant(scale), *zeros], **settings)


def channel_scale(site: Site, channels: int) -> np.ndarray:
    """Returns the step of each output channel."""
    scale = np.asarray(site.unit.kernels[0].scale, np.float32).reshape(-1)
    return np.ascontiguousarray(np.broadcast_to(scale, (channels,)))


def real_bias(site: Site, x: Value, channels: int) -> np.ndarray | None:
    """Returns a bias as real values, `None` where there is none."""
    unit = site.unit
    if unit is None:
        return weight(site.layer.bias) if site.layer.use_bias else None
    if unit.bias is None:
        bias = np.asarray(unit.layer.quantize_config.real_weights(unit.layer)[1], np.float64)
    else:
        bias = np.asarray(unit.bias, np.float64).reshape(-1)
        if x.step is not None and not unit.kernels[0].group_size:
            bias = bias * (np.float64(x.step.scale) * channel_scale(site, channels))
    return bias.astype(np.float32) if bias.any() else None


def written_bias(site: Site, x: Value, channels: int) -> str | None:
    """Writes a bias: integers of 32 bits of the steps of the products, where these have 8.

    Returns:
        Name of its real values, or `None` where there is none.
    """
    w, unit, step = site.writer, site.unit, x.step
    if unit is None or unit.bias is None or step is None or step.bits > 8:
        bias = real_bias(site, x, channels)
        return None if bias is None else w.constant(bias)
    bias, limit = np.asarray(unit.bias, np.float64).reshape(-1), np.iinfo(np.int32)
    if not bias.any():
        return None
    # As the kernel multiplies them, in float32: with another scale it is no integer bias.
    q = np.clip(bias, limit.min, limit.max).astype(np.int32)
    names = [
        w.constant(q, f"{site.name}/bias"),
        w.constant(step.scale * channel_scale(site, channels)),
    ]
    return w.add("DequantizeLinear", names, axis=0)


@writes(layers.Dense)
def dense(site):
    """Gemm of vectors, of integers in and out one operator; MatMul of real values, which weights of
    4 bits serve as they are."""
    w, x = site.writer, site.writer.layout(site.x, False)
    kernel = kernel_of(site, (0, 1))
    depth, channels = kernel.shape
    grouped = bool(site.unit and site.unit.kernels and site.unit.kernels[0].group_size)
    real = written_kernel(site, kernel, 1, grouped)
    if x.step is None or grouped or x.step.bits > 8:
        bias = real_bias(site, x, channels)
        y = w.add("MatMul", [w.real(x), real])
        # With Add it would be a Gemm, and with an activation behind it one of real weights.
        y = y if bias is None else w.add("Sub", [y, w.constant(-bias)])
        return site.value(_activation(site, y))
    bias, rows = written_bias(site, x, channels), x
    if len(x.shape) > 2:
        rows = w.moved([x], (None, depth), lambda n: _as_rows(w, n[0], depth))
    inputs = [w.real(rows), real, *([] if bias is None else [bias])]
    y = Value((None, channels), real=_activation(site, w.add("Gemm", inputs)))
    y = site.on_grid(y)
    if len(x.shape) > 2:
        y = w.moved([y], site.shape, lambda n: _as_before(w, n[0], x, channels))
    return site.done(y)


def _as_rows(w, name, depth):
    return w.add("Reshape", [name, w.constant(np.array([-1, depth], np.int64))])


def _as_before(w, name, x, channels):
    """Returns rows in the shape of `x` but its last axis, known or not."""
    inner = x.shape[1:-1]
    if None not in inner:
        return w.reshaped(name, [*inner, channels])
    shape = w.add("Shape", [w.real(x) if x.q is None else x.q], end=-1)
    whole = w.add("Concat", [shape, w.constant(np.array([channels], np.int64))], axis=0)
    return w.add("Reshape", [name, whole])


def _activation(site: Site, name: str) -> str:
    """Applies the activation of a layer that stays float, which is within the layer."""
    function = getattr(site.layer, "activation", None)
    if site.unit is not None or function in (None, keras.activations.linear):
        return name
    return writer_of(function, site)(site.writer, name)


@writes(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(site):
    """Conv: `(filters, inputs, ...)`."""
    rank = len(site.layer.kernel_size)
    kernel = kernel_of(site, (rank + 1, rank, *range(rank)))
    return _convolve(site, kernel, site.layer.groups)


@writes(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise(site):
    """Conv of as many groups as channels."""
    *size, inputs, multiplier = site.layer.kernel.shape
    rank = len(size)
    kernel = kernel_of(site, (rank + 1, rank, *range(rank)), (*size, 1, inputs * multiplier))
    return _convolve(site, kernel, inputs)


def _convolve(site, kernel, groups):
    layer, w = site.layer, site.writer
    _check_channels_last(site)
    x = w.layout(site.x, True)
    names = [w.real(x), written_kernel(site, kernel, 0)]
    bias = written_bias(site, x, len(kernel))
    settings = {
        "kernel_shape": list(layer.kernel_size),
        "group": groups,
        **window(layer, x.shape[1:-1], layer.kernel_size, layer.dilation_rate),
    }
    y = w.add("Conv", [*names, *([] if bias is None else [bias])], **settings)
    return site.value(_activation(site, y), True)


def _check_channels_last(site):
    if getattr(site.layer, "data_format", "channels_last") != "channels_last":
        raise ValueError(
            f"Layers of channels last are expected. Received: '{site.name}', whose channels are "
            "first."
        )


def window(layer, sizes, kernel, dilation=None) -> dict:
    """Returns strides, padding and dilation of a sliding window, only those that are needed.

    Args:
        layer: Layer with `strides` and `padding`.
        sizes: Lengths of the axes that it slides over.
        kernel: Its lengths.
        dilation: Its dilation, or `None` for none.
    """
    strides = tuple(layer.strides)
    dilation = tuple(dilation) if dilation else (1,) * len(kernel)
    found = {}
    if any(s > 1 for s in strides):
        found["strides"] = list(strides)
    if any(d > 1 for d in dilation):
        found["dilations"] = list(dilation)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if layer.padding == "causal":
        found["pads"] = [spans[0] - 1, 0]
    elif layer.padding == "same":
        if None in sizes:
            return {**found, "auto_pad": "SAME_UPPER"}
        pads = [
            max((-(-n // s) - 1) * s + span - n, 0)
            for n, s, span in zip(sizes, strides, spans, strict=True)
        ]
        if any(pads):
            found["pads"] = [*(p // 2 for p in pads), *(p - p // 2 for p in pads)]
    return found


@writes(layers.Conv1DTranspose, layers.Conv2DTranspose)
def transposed(site):
    """ConvTranspose: `(inputs, filters, ...)`. ONNX Runtime computes it in float."""
    layer, w = site.layer, site.writer
    _check_channels_last(site)
    rank = len(layer.kernel_size)
    kernel = kernel_of(site, (rank + 1, rank, *range(rank)))
    x = w.layout(site.x, True)
    names = [w.real(x), written_kernel(site, kernel, 1)]
    bias = written_bias(site, x, kernel.shape[1])
    pads, more = [], []
    for n, m, k, s, d in zip(
        x.shape[1:-1],
        site.shape[1:-1],
        layer.kernel_size,
        layer.strides,
        layer.dilation_rate,
        strict=True,
    ):
        if n is None:
            raise ValueError(
                f"Images of a known size are expected. Received: '{site.name}' on {x.shape}."
            )
        cut = (n - 1) * s + (k - 1) * d + 1 - m
        pads.append(max(cut, 0))
        more.append(max(-cut, 0))
    settings = {
        "strides": list(layer.strides),
        "dilations": list(layer.dilation_rate),
        "pads": [*(p // 2 for p in pads), *(p - p // 2 for p in pads)],
        "output_padding": more,
    }
    y = w.add("ConvTranspose", [*names, *([] if bias is None else [bias])], **settings)
    return site.value(_activation(site, y), True)


@writes(layers.Embedding)
def embedding(site):
    """Gather of a table: of integers on the output's grid, or of ones that are turned back."""
    w, (step, *_) = site.writer, site.steps
    ids = site.x.real
    if ids is None or "int" not in str(site.x.dtype):
        ids = w.add("Cast", [w.real(site.x)], to=w.onnx.TensorProto.INT32)
    table = weight(site.layer.embeddings)
    if step is not None and isinstance(site.unit.layer.quantize_config, TableConfig):
        q = np.rint(table / step.scale) + step.zero_point
        q = np.clip(q, step.low, step.high).astype(step.dtype)
        return Value(site.shape, w.add("Gather", [w.constant(q, f"{site.name}/table"), ids]), step)
    kernel = site.unit.kernels[0] if site.unit and site.unit.kernels else None
    if kernel is None:
        return site.value(w.add("Gather", [w.constant(table), ids]))
    if kernel.spec is None:
        half = w.constant(weight(kernel.variable).astype(np.float16), f"{site.name}/table")
        return site.value(w.add("Cast", [w.add("Gather", [half, ids])], to=1))
    rows = w.add("Gather", [w.constant(kernel.integers.astype(np.int8)), ids])
    scale = w.constant(np.asarray(kernel.scale, np.float32))
    real = w.add("Cast", [rows], to=w.onnx.TensorProto.FLOAT)
    return site.value(w.add("Mul", [real, scale]))


@writes(parts.Constant, parts.Whole)
def constant(site):
    """Values that the file holds: on their own grid, or on that of the output."""
    w, values, (step, *_) = site.writer, weight(site.layer.values), site.steps
    if site.layer.free_axes:
        raise ValueError(
            f"Tensors of known lengths are expected. Received: '{site.name}', cut to a length "
            "that the input has."
        )
    if values.dtype != np.float32:
        return w.held(values, site.shape)
    kernel = site.unit.kernels[0] if site.unit and site.unit.kernels else None
    if step is not None:
        q = np.clip(np.rint(values / step.scale) + step.zero_point, step.low, step.high)
        return w.held(q.astype(step.dtype), site.shape, step, site.name)
    if kernel is None or kernel.spec is None:
        return w.held(values, site.shape)
    grid = Grid(QuantParams(kernel.scale.reshape(-1)[0], 0), kernel.spec)
    step = Step.of(grid)
    q = kernel.integers.astype(np.int32) + step.zero_point
    return w.held(q.astype(step.dtype), site.shape, step, site.name)
