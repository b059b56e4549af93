"""What ONNX Runtime fuses, against the arithmetic of the device, on all pairs of integers."""

import numpy as np
import pytest
from keras import ops

from tfquant.devices import DEVICES
from tfquant.numerics import QuantParams, QuantSpec
from tfquant.quantizers import Grid

onnx = pytest.importorskip("onnx", reason="needs the extra tfquant[onnx]: onnx, onnxruntime")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra tfquant[onnx]: onnxruntime")

DEVICE = DEVICES["onnxruntime"]
A, B = (x.reshape(-1) for x in np.meshgrid(np.arange(256), np.arange(256)))


def grid(scale, zero_point, q=None):
    """A grid of 8 bits whose integers are counted from 0, and those of a tensor."""
    params = QuantParams(np.float32(scale), np.float32(zero_point - 128))
    steps = None if q is None else np.float32(np.int32(q) - zero_point)
    return Grid(params, QuantSpec(8), steps)


def received(operator, inputs, output, **attributes):
    """What ONNX Runtime computes of arrays on grids, and the operators that it takes."""
    make, names, nodes, constants = onnx.helper.make_node, [], [], []

    def constant(value):
        constants.append(onnx.numpy_helper.from_array(value, f"c{len(constants)}"))
        return constants[-1].name

    def pair(g):
        zero_point = np.array(int(g.params.zero_point) + 128, np.uint8)
        return [constant(np.array(g.params.scale)), constant(zero_point)]

    for number, (g, _) in enumerate(inputs):
        names.append(f"x{number}")
        nodes.append(make("DequantizeLinear", [names[-1], *pair(g)], [f"r{number}"]))
    reals = [f"r{number}" for number in range(len(inputs))]
    nodes.append(make(operator, reals, ["y"], **attributes) if operator else None)
    last = "y" if operator else "r0"
    nodes = [n for n in nodes if n is not None]
    nodes.append(make("QuantizeLinear", [last, *pair(output)], ["q"]))
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.UINT8
    ends = [info(n, kind, q.shape) for n, (_, q) in zip(names, inputs, strict=True)]
    graph = onnx.helper.make_graph(nodes, "g", ends, [info("q", kind, None)], constants)
    opset = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString())
    rows = {n: q.astype(np.uint8) for n, (_, q) in zip(names, inputs, strict=True)}
    return session.run(None, rows)[0].astype(np.int32)


def integers(steps, output):
    """The integers of output steps, counted from 0."""
    q = np.rint(ops.convert_to_numpy(steps)) + output.params.zero_point + 128
    return np.clip(q, 0, 255).astype(np.int32)


def scales(rng, number):
    """Three steps: at random, or such that many sums and products lie between two integers."""
    if number % 2:
        return np.float32(rng.uniform(0.01, 0.1, 3))
    return np.float32([0.5, 0.25, rng.choice([0.5, 1.0, 16.0])])


@pytest.mark.parametrize(("name", "operator"), [("ADD", "Add"), ("MUL", "Mul")])
@pytest.mark.parametrize("number", range(12))
def test_fused_operators_of_two_tensors_are_exact_at_ties(name, operator, number, rng):
    rng = np.random.default_rng(number)
    a, b, y = scales(rng, number)
    za, zb, zy = (int(z) for z in rng.integers(0, 256, 3))
    inputs, output = [grid(a, za, A), grid(b, zb, B)], grid(y, zy)
    expected = integers(DEVICE.compute(name, inputs, output), output)
    found = received(operator, list(zip(inputs, (A, B), strict=True)), output)
    np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize("number", range(6))
def test_integers_are_brought_to_another_grid_exactly(number):
    rng = np.random.default_rng(number)
    a, _, y = scales(rng, number)
    x, output = grid(a, 7, np.arange(256)), grid(y, 200)
    expected = integers(DEVICE.compute("QUANTIZE", [x], output), output)
    np.testing.assert_array_equal(expected, received(None, [(x, np.arange(256))], output))


@pytest.mark.parametrize("side", range(1, 9))
def test_means_of_whole_channels_are_exact(side, rng):
    q = rng.integers(0, 256, (16, 32, side, side))
    x, output = grid(0.05, 130, q), grid(0.05 if side % 2 else 0.013, 3)
    sums = x.steps.sum((2, 3), keepdims=True)
    expected = DEVICE.compute("MEAN", [x], output, sums=sums, count=side * side)
    found = received("GlobalAveragePool", [(x, q)], output)
    np.testing.assert_array_equal(integers(expected, output), found)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_means_of_windows_are_exact_at_ties(side, rng):
    q = rng.integers(0, 256, (8, 16, 6, 6))
    x = grid(0.0471, 131, q)

    def mean_of(values):
        values = np.asarray(values)
        windows = np.lib.stride_tricks.sliding_window_view(values, (side, side), (2, 3))
        total = np.zeros(windows.shape[:4], np.float32)
        for i, j in np.ndindex(side, side):  # In order, one after the other.
            total += windows[..., i, j]
        return total / np.float32(side * side)

    expected = DEVICE.compute("AVERAGE_POOL_2D", [x], x, mean_of=mean_of)
    settings = {"kernel_shape": [side, side], "strides": [1, 1]}
    found = received("AveragePool", [(x, q)], x, **settings)
    np.testing.assert_array_equal(integers(expected, x), found)
