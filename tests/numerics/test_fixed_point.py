"""Requantization against Python's integers, and against the device."""

import math

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import tfquant as tfq
from tfquant.kernels import xnnpack
from tfquant.numerics.fixed_point import (
    quantize_multiplier,
    requantize_fixed_point,
    requantize_fixed_point_64,
    requantize_float,
    requantize_half_away,
    requantize_one_rounding,
)
from tfquant.numerics.params import QuantParams
from tfquant.numerics.spec import QuantSpec
from tfquant.quantizers import Grid

ACCUMULATORS = (0, 1, -1, 2, -2, 127, -128, 2**15, 2**24 - 1, 2**24 + 1, 2**30, 2**31 - 1, -(2**31))
BOUNDARIES = (
    *(2.0**e for e in range(-33, 3)),
    *(math.nextafter(2.0**e, 0) for e in range(-31, 3)),
    *(math.nextafter(2.0**e, 9) for e in range(-33, 2)),
    *((1 - 2.0**-k) * 2.0**-3 for k in range(28, 36)),
)


def python_multiplier(multiplier):
    """The significand and exponent, by `frexp` and whole numbers."""
    fraction, exponent = math.frexp(multiplier)
    significand = math.floor(fraction * 2**32 + 1) // 2  # Doubling is exact: this is floor(x + .5).
    if significand == 2**31:
        significand, exponent = 2**30, exponent + 1
    return (0 if exponent < -31 else significand), exponent


def python_fixed_point(accumulator, multiplier):
    significand, exponent = python_multiplier(multiplier)
    left, right = max(exponent, 0), max(-exponent, 0)
    high = ((accumulator << left) * significand + 2**30) >> 31
    return (high + (1 << right >> 1)) >> right


def python_one_rounding(accumulator, multiplier):
    significand, exponent = python_multiplier(multiplier)
    return (accumulator * significand + (1 << (30 - exponent))) >> (31 - exponent)


def python_fixed_point_64(accumulator, multiplier):
    significand, exponent = python_multiplier(multiplier)
    reduced = min((significand + 2**15) >> 16, 2**15 - 1)
    return (accumulator * reduced + (1 << (14 - exponent))) >> (15 - exponent)


def multipliers(rng, count=2000):
    return np.concatenate([BOUNDARIES, np.exp(rng.uniform(np.log(1e-8), np.log(4), count))])


def float64(values):
    return ops.array(np.asarray(values, np.float64), "float64")


def test_a_multiplier_is_its_significand_and_exponent(rng):
    reals = multipliers(rng)
    significand, exponent = (np.asarray(v) for v in quantize_multiplier(float64(reals)))
    expected = [python_multiplier(float(m)) for m in reals]
    got = list(zip(significand.tolist(), exponent.tolist(), strict=True))
    assert got == expected


def test_a_significand_has_31_bits_or_none(rng):
    significand, exponent = quantize_multiplier(float64(multipliers(rng)))
    significand = np.asarray(significand)
    normal = (significand >= 2**30) & (significand < 2**31)
    assert (normal | (significand == 0)).all()
    assert (significand[np.asarray(exponent) < -31] == 0).all()


def test_a_significand_is_within_half_a_unit_of_the_multiplier(rng):
    reals = np.exp(rng.uniform(np.log(1e-8), np.log(4), 2000))
    significand, exponent = (np.asarray(v, np.float64) for v in quantize_multiplier(float64(reals)))
    assert np.abs(significand * 2.0 ** (exponent - 31) / reals - 1).max() <= 2.0**-31


def test_32_bit_accumulators_are_scaled_as_in_whole_numbers(rng):
    reals = multipliers(rng)
    random = rng.integers(-(2**31), 2**31, (20, reals.size))
    table = np.broadcast_to(np.array(ACCUMULATORS)[:, None], (len(ACCUMULATORS), reals.size))
    # The device shifts left within 32 bits: what does not fit is no input.
    room = 2 ** np.maximum(np.frexp(reals)[1] + 1, 0)
    accumulators = np.concatenate([random, table]) // room
    got = np.asarray(requantize_fixed_point(float64(accumulators), float64(reals)))
    expected = [
        [python_fixed_point(int(a), float(m)) for a, m in zip(row, reals, strict=True)]
        for row in accumulators
    ]
    np.testing.assert_array_equal(got.astype(np.int64), expected)


def test_64_bit_accumulators_are_scaled_as_in_whole_numbers(rng):
    reals = multipliers(rng)
    wide = np.rint(rng.normal(size=(20, reals.size)) * 2.0 ** rng.uniform(0, 43, (20, 1)))
    table = np.broadcast_to(np.array(ACCUMULATORS)[:, None], (len(ACCUMULATORS), reals.size))
    accumulators = np.concatenate([wide, table])
    got = np.asarray(requantize_fixed_point_64(float64(accumulators), float64(reals)))
    expected = [
        [python_fixed_point_64(int(a), float(m)) for a, m in zip(row, reals, strict=True)]
        for row in accumulators
    ]
    np.testing.assert_array_equal(got.astype(np.int64), expected)


def test_one_rounding_is_that_of_whole_numbers(rng):
    reals = multipliers(rng)
    accumulators = rng.integers(-(2**31), 2**31, (5, reals.size)).astype(np.float64)
    got = np.asarray(requantize_one_rounding(float64(accumulators), float64(reals)))
    expected = [
        [python_one_rounding(int(a), float(m)) for a, m in zip(row, reals, strict=True)]
        for row in accumulators
    ]
    np.testing.assert_array_equal(got.astype(np.int64), expected)


@pytest.mark.parametrize("requantize", [requantize_fixed_point, requantize_fixed_point_64])
@pytest.mark.parametrize("exponent", [1, 2, 7])
def test_halves_go_upward(requantize, exponent):
    whole = np.arange(-5, 5)
    accumulator = float64(whole * 2**exponent + 2 ** (exponent - 1))
    got = requantize(accumulator, float64([2.0**-exponent]))
    assert np.asarray(got).tolist() == (whole + 1).tolist()


@pytest.mark.parametrize("requantize", [requantize_fixed_point, requantize_fixed_point_64])
def test_a_multiplier_of_one_changes_nothing(requantize):
    values = np.array([-70000, -1, 0, 1, 70000])
    got = np.asarray(requantize(float64(values), float64([1.0])))
    # 15 bits of 2**14 / 2**14 are exact; so are 31.
    assert got.tolist() == values.tolist()


def test_the_nearest_integer_is_missed_by_no_more_than_one(rng):
    reals = np.exp(rng.uniform(np.log(1e-8), np.log(1), 2000))
    accumulators = rng.integers(-(2**31), 2**31, reals.size)
    got = np.asarray(requantize_fixed_point(float64(accumulators), float64(reals)))
    # Half a step each rounding, and the significand's own error of 2**-32 of the product.
    assert np.abs(got - accumulators * reals).max() <= 1.5


def test_one_multiplier_for_each_channel(rng):
    accumulators, reals = rng.integers(-9999, 9999, (6, 3)), [1e-3, 0.3, 1.7]
    got = np.asarray(requantize_fixed_point(float64(accumulators), float64(reals)))
    for channel, m in enumerate(reals):
        alone = [python_fixed_point(int(a), m) for a in accumulators[:, channel]]
        assert got[:, channel].tolist() == alone


@pytest.mark.parametrize("requantize", [requantize_fixed_point, requantize_fixed_point_64])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_computes_what_eager_execution_does(requantize, jit_compile, rng):
    reals = float64(np.exp(rng.uniform(np.log(1e-8), np.log(4), 500)))
    accumulators = float64(rng.integers(-(2**27), 2**27, 500))
    compiled = tf.function(requantize, jit_compile=jit_compile)
    np.testing.assert_array_equal(
        compiled(accumulators, reals).numpy(), requantize(accumulators, reals).numpy()
    )


def test_a_float_kernel_rounds_one_float32_product(rng):
    accumulator = rng.integers(-(2**24), 2**24, 100).astype(np.float32)
    got = requantize_float(ops.array(accumulator), ops.array(np.float32(0.00317)))
    np.testing.assert_array_equal(got, accumulator * np.float32(0.00317))


@pytest.mark.parametrize("scheme", ["w4a8", "w8a16"])
def test_the_device_scales_as_in_whole_numbers(scheme, rng, tmp_path):
    """A convolution of size one: its sums are those of a product of matrices."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 6)), layers.Conv2D(5, 1)])
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    data = rng.normal(size=(16, 8, 8, 6)).astype(np.float32)
    quantized = tfq.calibrate(
        tfq.quantize_model(model, scheme), data, bias_correction=False, progress=False
    )
    path = tmp_path / "model.tflite"
    tfq.to_tflite(quantized, path, verify=False, progress=False)
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    s_in, z_in = source["quantization"]
    s_out, z_out = target["quantization"]
    info = np.iinfo(source["dtype"])
    q = rng.integers(info.min // 2, info.max // 2, (1, 8, 8, 6))
    interpreter.set_tensor(source["index"], q.astype(source["dtype"]))
    interpreter.invoke()
    got = interpreter.get_tensor(target["index"]).astype(np.int64)

    kernel, bias = model.get_weights()
    wrapper = next(x for x in quantized.layers if isinstance(x, tfq.QuantizeWrapper))
    ((_, quantizer),) = wrapper.weight_quantizers
    top = 7 if scheme == "w4a8" else 127
    step = np.asarray(quantizer.params(kernel).scale).ravel()
    k = np.clip(np.rint(kernel / step), -top, top).astype(np.int64)[0, 0]
    double_step = np.float64(np.float32(s_in)) * np.float64(step)
    b = np.rint(bias.astype(np.float64) / double_step).astype(np.int64)
    sums = (q - z_in).reshape(-1, 6) @ k + b
    scaled = python_fixed_point if scheme == "w4a8" else python_fixed_point_64
    real = double_step / np.float64(np.float32(s_out))
    steps = [[scaled(int(a), float(m)) for a, m in zip(row, real, strict=True)] for row in sums]
    expected = np.clip(np.array(steps) + z_out, info.min, info.max)
    np.testing.assert_array_equal(got.reshape(-1, 5), expected)


@pytest.mark.parametrize("spread", [0.2, 1.0, 4.0, 12.0, 50.0])
def test_hard_swish_is_the_device_s(spread, rng, tmp_path):
    """Over the scales at which the gate's exponent is negative, zero and positive."""
    inputs = keras.Input((256,))
    model = keras.Model(inputs, layers.Activation("hard_swish")(inputs))
    data = rng.normal(0.1 * spread, spread, (64, 256)).astype(np.float32)
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    assert [layer.operator for layer in report.layers] == ["QUANTIZE", "HARD_SWISH"]
    assert report.end_to_end.differing == 0


@pytest.mark.parametrize("side", [2, 3, 7])
def test_means_fall_as_the_device_s_at_ties(side, rng, tmp_path):
    """The scale of the output is set in the file so that one sum is half way between integers."""
    inputs = keras.Input((side, side, 2))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(inputs))
    data = rng.normal(size=(16, side, side, 2)).astype(np.float32)
    quantized = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    path, count = tmp_path / "model.tflite", side * side
    tfq.to_tflite(quantized, path, verify=False, progress=False)
    content = path.read_bytes()
    s_in, s_out = (
        np.float32(detail["quantization"][0]) for detail in _details(Interpreter(str(path)))
    )
    assert content.count(s_out.tobytes()) == 1
    plain = 0
    for _ in range(300):
        total, steps = int(rng.integers(5, 90 * count)), int(rng.integers(1, 100)) + 0.5
        tie = np.float32(total * np.float64(s_in) / (count * steps))
        interpreter = Interpreter(model_content=content.replace(s_out.tobytes(), tie.tobytes()))
        interpreter.allocate_tensors()
        source, target = _details(interpreter)
        z_in, z_out = source["quantization"][1], target["quantization"][1]
        q = np.full((count, 2), total // count)
        q[: total % count] += 1
        q = np.clip(q * [1, -1] + z_in, -128, 127)
        interpreter.set_tensor(source["index"], q.reshape(1, side, side, 2).astype(np.int8))
        interpreter.invoke()
        sums = np.float32(q - z_in).sum(0)
        x, y = (
            Grid(QuantParams(*p), QuantSpec(8)) for p in ((s_in, z_in), (tie, np.float32(z_out)))
        )
        expected = xnnpack.mean((x,), y, sums=ops.array(sums), count=count)
        got = interpreter.get_tensor(target["index"])[0]
        np.testing.assert_array_equal(got, np.clip(np.asarray(expected) + z_out, -128, 127))
        plain += np.sum(np.rint(sums * np.float32(s_in / tie / count)) + z_out != got)
    assert plain > 20  # these sums tell one order of rounding from another


@pytest.mark.parametrize(
    ("source", "target"), [("int16", "int8"), ("int16", "int16"), ("int8", "int16")]
)
def test_16_bits_are_brought_to_another_grid_as_the_device_does(source, target, rng):
    info, to = np.iinfo(source), np.iinfo(target)
    zero = int(rng.integers(-100, 100)) if target == "int8" else 0
    for _ in range(20):
        s_in, top = np.float32(rng.uniform(1e-4, 1e-3)), info.max
        s_out = np.float32(s_in * top / to.max * rng.uniform(0.5, 2))
        ties = (np.arange(-1000, 1000) + 0.5) * np.float64(s_out) / np.float64(s_in)
        q = np.concatenate([rng.integers(info.min, info.max, 2000), np.rint(ties)])
        q = np.clip(q, info.min, info.max)
        content = _quantize_file(q.size, (source, s_in, 0), (target, s_out, zero))
        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
        interpreter.set_tensor(0, q[None].astype(source))
        interpreter.invoke()
        steps = requantize_half_away(float64(q), float64(np.float64(s_in) / np.float64(s_out)))
        expected = np.clip(np.asarray(steps) + zero, to.min, to.max)
        np.testing.assert_array_equal(interpreter.get_tensor(1)[0], expected)


def _quantize_file(size, source, target):
    """A file of one QUANTIZE between tensors of (type, scale, zero point)."""
    tensors = []
    for i, (dtype, scale, zero_point) in enumerate((source, target)):
        tensor = schema.TensorT()
        tensor.name, tensor.buffer, tensor.shape = "xy"[i], i, np.array([1, size], np.int32)
        tensor.type = getattr(schema.TensorType, dtype.upper())
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.array([scale], np.float32)
        tensor.quantization.zeroPoint = np.array([zero_point], np.int64)
        tensors.append(tensor)
    operator, code = schema.OperatorT(), schema.OperatorCodeT()
    operator.inputs, operator.outputs = np.array([0], np.int32), np.array([1], np.int32)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.operators = tensors, [operator]
    graph.inputs, graph.outputs = operator.inputs, operator.outputs
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT(), schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _details(interpreter):
    return interpreter.get_input_details()[0], interpreter.get_output_details()[0]


@pytest.mark.parametrize("spread", [0.3, 1.1, 3.7])
def test_a_tensor_is_brought_to_another_grid_as_the_device_does(spread, rng, tmp_path):
    """The concatenation has one grid, that of sigmoids is dictated: they are rounded again."""
    x, y = keras.Input((256,)), keras.Input((64,))
    both = layers.Concatenate()([layers.Activation("sigmoid")(x), layers.ReLU()(y)])
    model = keras.Model([x, y], both)
    data = [rng.normal(size=(64, n)).astype(np.float32) * spread for n in (256, 64)]
    q = tfq.calibrate(tfq.quantize_model(model), data, progress=False)
    report = tfq.to_tflite(q, tmp_path / "model.tflite", samples=data, progress=False)
    # The sigmoids come from a table.
    assert report.end_to_end.largest <= 1
    (joined,) = [layer for layer in report.layers if layer.operator == "CONCATENATION"]
    assert joined.parity.differing == 0
