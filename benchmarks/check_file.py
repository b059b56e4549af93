"""Recomputes every convolution, dense layer and addition of an integer `.tflite` file.

    python benchmarks/check_file.py model.tflite inputs.npy

Each operator is fed the integers that LiteRT's default kernels fed it, and its accumulator is
computed in float64, which holds it exactly. Nothing of tfquant is used, so that this says what the
file alone means:

    INT8 weights (XNNPACK):  y = round((acc + bias) * float32(s_in * s_w / s_out)) + z
    ADD (XNNPACK):           y = floor((a * m_a + b * m_b) / 2**shift + 1/2) + z
                             with m = round(s / s_out * 2**shift), the larger one of 21 bits
    INT4 convolution:        h = floor((acc * significand + 2**30) / 2**31)
                             y = floor((h + 2**(-exponent - 1)) / 2**-exponent) + z
                             with s_in * s_w / s_out = significand * 2**(exponent - 31)

The exit code is 1 if one value of more than 10,000 differs, one by more than a step, a bias is at
the end of its range, or a 4-bit weight passes through float; 2 for wrong arguments.
"""

import dataclasses
import math
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import device
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

ROWS = 8
DTYPES = {"INT8": np.int8, "INT32": np.int32, "INT64": np.int64}
CHECKED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD")
PADDINGS = {schema.Padding.SAME: "SAME", schema.Padding.VALID: "VALID"}


@dataclasses.dataclass
class Count:
    """How many values of a kind of operator differ.

    Attributes:
        operators: Operators checked.
        values: Values compared.
        differing: Values that differ.
        largest: Largest difference in output steps.
    """

    operators: int = 0
    values: int = 0
    differing: int = 0
    largest: int = 0

    @property
    def met(self) -> bool:
        """Whether at most one tie in 10,000 values was rounded the other way."""
        return self.largest <= 1 and self.differing * 10_000 <= self.values


@dataclasses.dataclass
class FileCheck:
    """What was found in a file.

    Attributes:
        counts: `Count` by operator, such as `CONV_2D` or `CONV_2D int4`.
        saturated: Biases at the end of their range.
        unchecked: Integer operators of a checked kind that could not be recomputed.
        detours: `DEQUANTIZE` operators, and computed tensors in float inside the file.
        int4: Names of the 4-bit tensors.
    """

    counts: dict[str, Count]
    saturated: int
    unchecked: int
    detours: int
    int4: list[str]

    @property
    def total(self) -> Count:
        """All operators together."""
        counts = self.counts.values()
        return Count(
            sum(c.operators for c in counts),
            sum(c.values for c in counts),
            sum(c.differing for c in counts),
            max((c.largest for c in counts), default=0),
        )

    @property
    def exact(self) -> bool:
        """Whether every operator that was recomputed, and none could not be, is over no bar."""
        checked = bool(self.counts) and all(count.met for count in self.counts.values())
        return checked and not (self.saturated or self.unchecked)

    @property
    def met(self) -> bool:
        """Whether the file is over no bar: 4-bit weights are computed in integers throughout."""
        return self.exact and not (self.int4 and self.detours)


def check(content: bytes, rows: np.ndarray) -> FileCheck:
    """Checks a file on real inputs.

    Args:
        content: Bytes of the file; one input, batch of 1.
        rows: Real inputs; the first axis counts the rows.
    """
    model = device.read(content)
    graph = model.subgraphs[0]
    graph_outputs, graph_inputs = set(map(int, graph.outputs)), set(map(int, graph.inputs))
    computed = list(dict.fromkeys(int(i) for op in graph.operators for i in op.outputs))
    values = _run(content, computed, int(graph.inputs[0]), rows[:ROWS])
    counts, saturated, unchecked = {}, 0, 0
    for operator in graph.operators:
        name = device.op_name(model, operator)
        output = int(operator.outputs[0])
        if name not in CHECKED or values[output].dtype != np.int8:
            continue
        expected, kind, bias = _recompute(model, operator, name, values)
        if expected is None:
            unchecked += 1
            continue
        steps = np.abs(expected.reshape(values[output].shape) - values[output].astype(np.int64))
        count = counts.setdefault(kind, Count())
        count.operators += 1
        count.values += steps.size
        count.differing += int((steps > 0).sum())
        count.largest = max(count.largest, int(steps.max()))
        if bias is not None:
            saturated += int((np.abs(bias.astype(np.int64)) >= 2**31 - 1).sum())
    inside = [i for i in computed if i not in graph_outputs | graph_inputs]
    detours = sum(_type(graph, i) in ("FLOAT32", "FLOAT16") for i in inside)
    detours += sum(device.op_name(model, op) == "DEQUANTIZE" for op in graph.operators)
    int4 = [t.name.decode() for t in graph.tensors if t.type == schema.TensorType.INT4]
    return FileCheck(counts, saturated, unchecked, detours, int4)


def _run(content, computed, source, rows):
    """Returns the integers of every computed tensor, by index."""
    runner = device.Runner(device.with_outputs(device.read(content), computed))
    # An interpreter returns outputs in the file's order.
    values = dict(zip(computed, runner(rows), strict=True))
    values[source] = runner.integers(rows)
    return values


def _recompute(model, operator, name, values):
    """Returns `(expected, kind, bias)`; `expected` is `None` where the operands are not int8."""
    graph = model.subgraphs[0]
    inputs = [int(i) for i in operator.inputs if i >= 0]
    scale, zero = _grid(graph, int(operator.outputs[0]))
    if name == "ADD":
        if not all(i in values and values[i].dtype == np.int8 for i in inputs):
            return None, name, None
        steps = _add(graph, inputs, values, scale[0])
        return _clamp(operator, steps, scale[0], zero[0]), name, None
    source, stored, *rest = inputs
    weights_type = _type(graph, stored)
    if values[source].dtype != np.int8 or weights_type not in ("INT8", "INT4"):
        return None, name, None
    source_scale, source_zero = _grid(graph, source)
    weight_scale, weight_zero = _grid(graph, stored)
    if np.any(weight_zero):
        return None, name, None
    x = values[source].astype(np.float64) - source_zero
    w = _constant(model, stored).astype(np.float64)
    bias = _constant(model, rest[0]) if rest else np.zeros(1, np.int32)
    accumulator = np.rint(_accumulate(name, operator.builtinOptions, x, w)) + bias
    if weights_type == "INT4" and name == "CONV_2D":
        real = source_scale.astype(np.float64) * weight_scale / scale.astype(np.float64)
        steps = _fixed_point(accumulator, np.broadcast_to(real, accumulator.shape[-1:]))
    else:
        multiplier = (source_scale * weight_scale / scale).astype(np.float32)
        steps = np.rint(accumulator.astype(np.float32) * multiplier)
    kind = name if weights_type == "INT8" else f"{name} int4"
    return _clamp(operator, steps, scale[0], zero[0]), kind, bias


def _add(graph, inputs, values, scale):
    grids = [_grid(graph, i) for i in inputs]
    reals = [np.float64(s[0] / scale) for s, _ in grids]
    unit = 2.0 ** (20 - math.floor(math.log2(max(reals))))
    total = 0.0
    for i, (_, zero), real in zip(inputs, grids, reals, strict=True):
        total = total + (values[i].astype(np.float64) - zero[0]) * np.rint(real * unit)
    return np.floor(total / unit + 0.5)


def _accumulate(name, options, x, w):
    if name == "FULLY_CONNECTED":
        return x.reshape(-1, w.shape[1]) @ w.T
    strides = [1, options.strideH, options.strideW, 1]
    dilations = [options.dilationHFactor, options.dilationWFactor]
    padding = PADDINGS[options.padding]
    kernel = w.transpose(1, 2, 3, 0)
    if name == "CONV_2D":
        return tf.nn.conv2d(x, kernel, strides, padding, dilations=dilations).numpy()
    return tf.nn.depthwise_conv2d(x, kernel, strides, padding, dilations=dilations).numpy()


def _fixed_point(accumulator, real):
    """Requantizes as LiteRT's built-in kernels do, in integers of Python where int64 is too few."""
    steps = np.empty(accumulator.shape)
    for channel, multiplier in enumerate(real):
        significand, exponent = _quantize_multiplier(float(multiplier))
        left, right = max(exponent, 0), max(-exponent, 0)
        product = accumulator[..., channel].astype(np.int64) * (significand << left)
        high = (product + 2**30) >> 31
        steps[..., channel] = (high + ((1 << right) >> 1)) >> right
    return steps


def _quantize_multiplier(real: float) -> tuple[int, int]:
    """Returns `(significand, exponent)` as TFLite's QuantizeMultiplier does."""
    fraction, exponent = math.frexp(real)
    significand = math.floor(fraction * 2**31 + 0.5)
    if significand == 2**31:
        significand, exponent = 2**30, exponent + 1
    return (0, 0) if exponent < -31 else (significand, exponent)


def _clamp(operator, steps, scale, zero):
    """Adds the zero point and applies the operator's own activation."""
    low, high = -128, 127
    activation = operator.builtinOptions.fusedActivationFunction
    kinds = schema.ActivationFunctionType
    if activation in (kinds.RELU, kinds.RELU6):
        low = max(low, int(zero))
    if activation == kinds.RELU6:
        high = min(high, round(6 / float(scale)) + int(zero))
    if activation not in (kinds.NONE, kinds.RELU, kinds.RELU6):
        raise ValueError(f"An activation NONE, RELU or RELU6 is expected. Received: {activation}.")
    return np.clip(steps + int(zero), low, high).astype(np.int64)


def _type(graph, index):
    return device.TYPE_NAMES[graph.tensors[index].type]


def _grid(graph, index):
    quantization = graph.tensors[index].quantization
    return np.asarray(quantization.scale, np.float32), np.asarray(quantization.zeroPoint)


def _constant(model, index):
    tensor = model.subgraphs[0].tensors[index]
    data = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.uint8)
    kind = device.TYPE_NAMES[tensor.type]
    if kind != "INT4":
        return data.view(DTYPES[kind]).reshape(tensor.shape)
    low, high = (data << 4).view(np.int8) >> 4, data.view(np.int8) >> 4
    return np.stack([low, high], -1).reshape(-1)[: math.prod(tensor.shape)].reshape(tensor.shape)


def lines(found: FileCheck) -> list[str]:
    """Returns what was found in words."""
    words = [
        f"{kind}: {c.operators} operators, {c.differing:,} of {c.values:,} values differ, "
        f"by at most {c.largest}: {'met' if c.met else 'MISSED'}"
        for kind, c in found.counts.items()
    ]
    words.append(f"biases at the end of their range: {found.saturated}")
    words.append(f"4-bit tensors: {len(found.int4)}; float or DEQUANTIZE inside: {found.detours}")
    if found.unchecked:
        words.append(f"operators that could not be recomputed: {found.unchecked}")
    return words


def main(arguments) -> int:
    """Runs the command and returns its exit code."""
    if len(arguments) != 2 or not all(os.path.isfile(path) for path in arguments):
        print("usage: check_file.py MODEL.tflite INPUTS.npy", file=sys.stderr)
        return 2
    with open(arguments[0], "rb") as file:
        content = file.read()
    found = check(content, np.load(arguments[1]))
    print("\n".join(lines(found)))
    return 0 if found.met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
