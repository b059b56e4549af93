"""Random calls of every operator: the file of one, and what a device makes of its integers.

A row of `CASES` is a function of a generator and of the width of activations that returns the file
and what the device's arithmetic returns for it.
"""

import numpy as np
from keras import ops
from one_operator import File, Tensor

from tfquant.devices import Product, fixed_grid
from tfquant.numerics import QuantParams, QuantSpec
from tfquant.numerics.fixed_point import multiplier_dtype, requantize
from tfquant.quantizers import Grid

LIMITS = {8: (-128, 127), 16: (-32768, 32767)}


def power(rng, low, high):
    """A scale between `2**low` and `2**high`; one in five is a power of two, where ties are."""
    exponent = rng.uniform(low, high)
    return float(np.float32(2.0 ** (round(exponent) if rng.random() < 0.2 else exponent)))


def zero_point(rng, bits):
    return 0 if bits == 16 or rng.random() < 0.25 else int(rng.integers(-128, 128))


def integers(rng, bits, shape):
    low, high = LIMITS[bits]
    return rng.integers(low, high + 1, shape)


def shape_of(rng, rank=3, largest=24):
    return (1, *(int(n) for n in rng.integers(1, largest, rank - 1)))


class Drawn:
    """A tensor of random integers on a random grid."""

    def __init__(self, rng, bits, shape, scale, zero=None, data=None):
        self.zero = zero_point(rng, bits) if zero is None else zero
        self.scale, self.bits, self.shape = scale, bits, shape
        self.q = integers(rng, bits, shape) if data is None else data
        self.data = data

    @property
    def tensor(self):
        return Tensor(self.shape, f"int{self.bits}", self.scale, self.zero, self.data)

    @property
    def grid(self):
        steps = ops.convert_to_tensor((self.q - self.zero).astype(np.float32))
        return grid_on(self.bits, self.scale, self.zero)._replace(steps=steps)


def grid_on(bits, scale, zero):
    params = QuantParams(np.float32(scale), np.float32(zero))
    return Grid(params, QuantSpec(bits, symmetric=bits > 8))


def clipped(steps, output):
    """The integers that output steps become."""
    low, high = LIMITS[output.spec.stored_bits]
    q = np.rint(np.asarray(steps).astype(np.float64)) + float(output.params.zero_point)
    return np.clip(q, low, high).astype(np.int64)


def _finish(rng, device, operator, inputs, constants, shape, scale, zero, options=(), **settings):
    """Returns the file and what the device computes."""
    bits = inputs[0].bits
    zero = zero_point(rng, bits) if zero is None else zero
    output = grid_on(bits, scale, zero)
    steps = device.compute(operator, [x.grid for x in inputs], output, **settings)
    tensors = (*(x.tensor for x in inputs), *constants)
    fed = tuple(x.q for x in inputs if x.data is None)
    file = File(operator, tensors, Tensor(shape, f"int{bits}", scale, zero), fed, *options)
    return file, clipped(steps, output).reshape(shape)


def _unary(operator, low=-3, high=5, ratio=(-2, 2), options=(), bounds=None, **settings):
    """The row of a function of one tensor.

    Args:
        operator: Its name.
        low: Logarithm of the smallest bound of the input.
        high: That of the largest.
        ratio: Logarithms of the output's step divided by the input's.
        options: Options of the operator.
        bounds: Of the output's grid, where the device dictates it.
        **settings: What else the device is told.
    """

    def case(device, rng, bits):
        step = power(rng, low, high) / LIMITS[bits][1]
        if bits == 16 and operator in ("LOGISTIC", "TANH") and rng.random() < 0.2:
            # On both sides of where LiteRT takes a step for a power of two.
            step = 2.0 ** (rng.integers(-13, -9) + rng.uniform(-2e-3, 2e-3))
        x = Drawn(rng, bits, shape_of(rng), float(np.float32(step)))
        if device.moves(operator):
            scale, zero = x.scale, x.zero
        elif bounds is None:
            scale, zero = float(np.float32(x.scale * power(rng, *ratio))), None
        else:
            scale, zero = fixed_grid(bounds, bits)
        return _finish(rng, device, operator, [x], (), x.shape, scale, zero, options, **settings)

    return case


def _vectors(operator, bounds, options, reach):
    """The row of a function of vectors, among them of one value, of equal ones and of hundreds.

    Args:
        operator: Its name.
        bounds: Of the output's grid.
        options: Options of the operator.
        reach: Logarithms of the smallest and the largest step.
    """

    def case(device, rng, bits):
        length = int(rng.integers(1, 700 if rng.random() < 0.2 else 12))
        shape, zero = (1, int(rng.integers(1, 6)), length), zero_point(rng, bits)
        width = int(rng.integers(0, 256))
        q = np.clip(zero + rng.integers(-width, width + 1, shape), *LIMITS[bits])
        x = Drawn(rng, bits, shape, power(rng, *reach), zero)
        x.q = q
        scale, output_zero = fixed_grid(bounds, bits)
        return _finish(rng, device, operator, [x], (), shape, scale, output_zero, options)

    return case


def _binary(operator, options):
    def case(device, rng, bits):
        shape = shape_of(rng)
        other = shape if rng.random() < 0.7 else (1, 1, shape[-1])
        a, b = (Drawn(rng, bits, s, power(rng, -12, 3)) for s in (shape, other))
        unit = a.scale * b.scale * LIMITS[bits][1] if operator == "MUL" else max(a.scale, b.scale)
        scale = float(np.float32(unit * power(rng, -2, 2)))
        return _finish(rng, device, operator, [a, b], (), shape, scale, None, options)

    return case


def _leaky_relu(device, rng, bits):
    slope = float(np.float32(2.0 ** rng.uniform(-9, -0.1)))
    case = _unary("LEAKY_RELU", ratio=(-3, 3), options=("LeakyRelu", {"alpha": slope}), slope=slope)
    return case(device, rng, bits)


def _rsqrt(device, rng, bits):
    """LiteRT refuses negative numbers. At 16 bits a table of them is computed: many are asked."""
    zero, low = zero_point(rng, bits), -10 if bits == 8 else -16
    shape = shape_of(rng) if bits == 8 else (1, 16, 24)
    x = Drawn(rng, bits, shape, power(rng, low, 2 if bits == 8 else 0), zero)
    x.q = np.random.default_rng(rng.integers(2**32)).integers(zero, LIMITS[bits][1] + 1, shape)
    scale = power(rng, -10, 0)
    if bits == 16:
        largest = power(rng, -3, 3) / np.sqrt(x.scale * 4.0 ** rng.integers(0, 7))
        scale = float(np.float32(largest / LIMITS[bits][1]))
    return _finish(rng, device, "RSQRT", [x], (), x.shape, scale, None)


def _prelu(device, rng, bits):
    x = Drawn(rng, bits, shape_of(rng), power(rng, -12, 0))
    shape = (1, 1, x.shape[-1])
    slopes = Drawn(rng, bits, shape, power(rng, -9, -6), 0, rng.integers(-127, 128, shape))
    scale = float(np.float32(x.scale * power(rng, -1, 1)))
    return _finish(rng, device, "PRELU", [x, slopes], (), x.shape, scale, None)


def _reduction(operator):
    def case(device, rng, bits):
        x = Drawn(rng, bits, shape_of(rng, 4, 9), power(rng, -12, 0))
        axes = ((1, 2), (1,), (2,), (3,), (1, 2, 3))[rng.integers(5)]
        sums, count = (x.q - x.zero).sum(axes), int(np.prod([x.shape[a] for a in axes]))
        scale = float(np.float32(x.scale * power(rng, -2, 3)))
        axis = Tensor((len(axes),), "int32", data=np.array(axes))
        kept = ops.convert_to_tensor(sums.astype("float32" if bits == 8 else "float64"))
        settings = {"sums": kept, "count": count}
        options = ("Reducer", {"keepDims": False})
        return _finish(
            rng, device, operator, [x], [axis], sums.shape, scale, None, options, **settings
        )

    return case


def _batch_matmul(device, rng, bits):
    rows, depth, columns = (int(n) for n in rng.integers(1, 12, 3))
    batch = (1, *(int(n) for n in rng.integers(1, 4, rng.integers(0, 3))))
    a = Drawn(rng, bits, (*batch, rows, depth), power(rng, -12, 0))
    b = Drawn(rng, bits, (*batch, depth, columns), power(rng, -12, 0))
    sums = (a.q - a.zero) @ (b.q - b.zero)
    scale = float(np.float32(a.scale * b.scale * LIMITS[bits][1] * power(rng, -3, 3)))
    kept = ops.convert_to_tensor(sums.astype("float32" if bits == 8 else "float64"))
    options = ("BatchMatMul", {})
    return _finish(
        rng, device, "BATCH_MATMUL", [a, b], (), sums.shape, scale, None, options, sums=kept
    )


def _resize(device, rng, bits):
    x = Drawn(rng, bits, shape_of(rng, 4, 12), power(rng, -6, 0))
    height, width = (int(n) for n in rng.integers(1, 28, 2))
    if rng.random() < 0.3:
        height, width = 2 * x.shape[1], 2 * x.shape[2]
    size = Tensor((2,), "int32", data=np.array([height, width]))
    options = ("ResizeBilinear", {"halfPixelCenters": True, "alignCorners": False})
    shape, settings = (1, height, width, x.shape[3]), {"size": (height, width)}
    return _finish(
        rng, device, "RESIZE_BILINEAR", [x], [size], shape, x.scale, x.zero, options, **settings
    )


def _reduce_product(device, rng, bits):
    x = Drawn(rng, bits, shape_of(rng, 3, 6), power(rng, -7, -3))
    scale = float(np.float32((x.scale * 64) ** x.shape[1] / 64))
    axis, options = Tensor((1,), "int32", data=np.array([1])), ("Reducer", {"keepDims": False})
    settings = {"axes": [1], "keepdims": False}
    shape = (1, x.shape[2])
    return _finish(rng, device, "REDUCE_PROD", [x], [axis], shape, scale, None, options, **settings)


_STRIDES = {"padding": 1, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}


def _kernel(operator, weight_bits=8, bias=True):
    """The row of an operator that multiplies by weights, with a step for each channel."""

    def case(device, rng, bits):
        x, weights, sums, columns = _products(operator, rng, bits, 7 if weight_bits == 4 else 127)
        channels = sums.shape[-1]
        scales = np.array([power(rng, -9, -5) for _ in range(channels)], np.float32)
        biases = rng.integers(-1000, 1000, channels) if bias else np.zeros(channels, np.int64)
        sums = sums + biases
        largest = max(float(np.abs(sums * scales * x.scale).max()), 1e-6)
        scale = float(np.float32(largest / LIMITS[bits][1] * power(rng, -1, 1)))
        axis = 3 if operator == "DEPTHWISE_CONV_2D" else 0
        constants = [Tensor(weights.shape, f"int{weight_bits}", scales, 0, weights, axis)]
        if bias or operator != "FULLY_CONNECTED":
            dtype, steps = "int32" if bits == 8 else "int64", np.float32(x.scale) * scales
            constants.append(Tensor((channels,), dtype, steps, 0, biases))
        depth = weights.size // channels
        product = Product(operator, weight_bits, bits, depth, channels, columns, bias)
        rounding, output = device.rounding(product), grid_on(bits, scale, zero_point(rng, bits))
        dtype = multiplier_dtype(rounding)
        multiplier = np.asarray(x.scale, dtype) * scales.astype(dtype) / np.asarray(scale, dtype)
        wide = sums.astype("float32" if bits == 8 else "float64")
        steps = requantize(ops.convert_to_tensor(wide), ops.convert_to_tensor(multiplier), rounding)
        kinds = {"CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D"}
        options = ("FullyConnected", {})
        if operator in kinds:
            once = {"depthMultiplier": 1} if operator == "DEPTHWISE_CONV_2D" else {}
            options = (kinds[operator], {**_STRIDES, **once})
        written = Tensor(sums.shape, f"int{bits}", scale, int(output.params.zero_point))
        file = File(operator, (x.tensor, *constants), written, (x.q,), *options)
        return file, clipped(steps, output)

    return case


def _products(operator, rng, bits, top):
    """Returns the input, the weights, the sums of their products and the number of vectors."""
    inputs, outputs, side = (int(n) for n in rng.integers(1, (24, 12, 6)))
    size = int(rng.integers(1, min(4, side + 1)))
    scale = power(rng, -6, 0) * (1.0 if bits == 8 else 2.0**-8)
    if operator == "FULLY_CONNECTED":
        x = Drawn(rng, bits, (int(rng.integers(1, 5)), inputs), scale)
        weights = rng.integers(-top, top + 1, (outputs, inputs))
        return x, weights, (x.q - x.zero) @ weights.T, x.shape[0]
    x = Drawn(rng, bits, (1, side, side, inputs), scale)
    first, form = (outputs, "bhwc,oc->bhwo") if operator == "CONV_2D" else (1, "bhwc,oc->bhwc")
    weights = rng.integers(-top, top + 1, (first, size, size, inputs))
    n = side - size + 1
    sums = sum(
        np.einsum(form, (x.q - x.zero)[:, i : i + n, j : j + n], weights[:, i, j])
        for i in range(size)
        for j in range(size)
    )
    return x, weights, sums, n * n


def at_ratio(operator, power):
    """The row of 1,024 values whose second, or only, step is `2**power` times the output's.

    Of a product the first step is 1.
    """

    def case(device, rng, bits):
        count = 2 if operator in ("ADD", "MUL", "SUB") else 1
        ratios = [0.5 if count == 2 and operator != "MUL" else 1.0, 2.0**power][-count:]
        inputs = [Drawn(rng, bits, (1, 32, 32), float(np.float32(ratio))) for ratio in ratios]
        slope = 0.9 if operator == "LEAKY_RELU" else None
        name = {"LEAKY_RELU": "LeakyRelu"}.get(operator, operator.capitalize())
        options = (name, {"alpha": slope} if slope else {})
        settings = {"slope": slope} if slope else {}
        shape = (1, 32, 32)
        return _finish(rng, device, operator, inputs, (), shape, 1.0, None, options, **settings)

    return case


# Operator -> widths, function of device, generator and width.
CASES = {
    "ABS": ((8, 16), _unary("ABS")),
    "ADD": ((8, 16), _binary("ADD", ("Add", {"potScaleInt16": False}))),
    "BATCH_MATMUL": ((8, 16), _batch_matmul),
    "CONV_2D": ((8, 16), _kernel("CONV_2D")),
    "CONV_2D INT4": ((8,), _kernel("CONV_2D", 4)),
    "DEPTHWISE_CONV_2D": ((8, 16), _kernel("DEPTHWISE_CONV_2D")),
    "DEPTHWISE_CONV_2D INT4": ((8,), _kernel("DEPTHWISE_CONV_2D", 4)),
    "ELU": ((8,), _unary("ELU", ratio=(-1.5, 0.5))),
    "EXP": ((8, 16), _unary("EXP", -3, 2, (-1, 4))),
    "FULLY_CONNECTED": ((8, 16), _kernel("FULLY_CONNECTED")),
    "FULLY_CONNECTED INT4": ((8,), _kernel("FULLY_CONNECTED", 4)),
    "FULLY_CONNECTED no bias": ((8, 16), _kernel("FULLY_CONNECTED", bias=False)),
    "GELU": ((8, 16), _unary("GELU", ratio=(-1.5, 0.5), options=("Gelu", {"approximate": False}))),
    "GELU tanh": (
        (8, 16),
        _unary(
            "GELU",
            ratio=(-1.5, 0.5),
            options=("Gelu", {"approximate": True}),
            function="GELU_TANH",
        ),
    ),
    "HARD_SWISH": ((8,), _unary("HARD_SWISH", ratio=(0, 2))),
    "L2_NORMALIZATION": ((8,), _vectors("L2_NORMALIZATION", (-1, 1), ("L2Norm", {}), (-9, 0))),
    "LEAKY_RELU": ((8, 16), _leaky_relu),
    "LOGISTIC": ((8, 16), _unary("LOGISTIC", bounds=(0, 1))),
    "LOG_SOFTMAX": ((8,), _vectors("LOG_SOFTMAX", (-16, 0), ("LogSoftmax", {}), (-9, 1))),
    "MEAN": ((8, 16), _reduction("MEAN")),
    "MUL": ((8, 16), _binary("MUL", ("Mul", {}))),
    "PRELU": ((8,), _prelu),
    "QUANTIZE": ((8, 16), _unary("QUANTIZE", ratio=(-9, 8), options=("Quantize", {}))),
    "REDUCE_PROD": ((8,), _reduce_product),
    "RELU": ((8, 16), _unary("RELU")),
    "RELU6": ((8, 16), _unary("RELU6")),
    "RELU_N1_TO_1": ((8,), _unary("RELU_N1_TO_1")),
    "RESIZE_BILINEAR": ((8, 16), _resize),
    "RSQRT": ((8, 16), _rsqrt),
    "SOFTMAX": ((8, 16), _unary("SOFTMAX", options=("Softmax", {"beta": 1.0}), bounds=(0, 1))),
    "SUB": ((8, 16), _binary("SUB", ("Sub", {"potScaleInt16": False}))),
    "SUM": ((8, 16), _reduction("SUM")),
    "TANH": ((8, 16), _unary("TANH", bounds=(-1, 1))),
}
