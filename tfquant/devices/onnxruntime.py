"""`onnxruntime`: ONNX Runtime's kernels on a CPU, for files of `tfquant.onnx`.

It computes in float32 between DequantizeLinear and QuantizeLinear, which divides by the step and
rounds halves to even; that is what the simulation does where a row has no arithmetic of its own.
Where ONNX Runtime fuses the three into one operator of integers the same real numbers are rounded,
at ties otherwise: those rows have theirs. Operators have LiteRT's names, so that the tables of
configs serve both; `tfquant.nodes` says which ONNX operators they become.

Source: ONNX Runtime, MLAS `qladd.cpp`, `qlmul.cpp`, `quantize.cpp`, `qlgavgpool.cpp`; each row is
compared with ONNX Runtime 1.32 by the tests.
"""

import dataclasses

from keras import ops

from tfquant.devices import litert
from tfquant.devices.device import Device, Operator, Product


def add(inputs, output):
    """QLinearAdd: the zero point is within the rounded sum.

        q = round(ra * qa + (rb * qb + (z - (ra * za + rb * zb)))),  ra = a_scale / scale

    in float32, with integers counted from 0; of what is in brackets each product is added to the
    rest before both are rounded.
    """
    (ra, a, za), (rb, b, zb) = (_in_ratio(x, output) for x in inputs)
    rest = _from_0(output) - _fused(ra, za, rb * zb)
    return _behind_zero_point(_fused(ra, a, _fused(rb, b, rest)), output)


def _fused(a, b, c):
    """Returns `a * b + c`, float32, rounded once."""
    a, b, c = (ops.cast(x, "float64") for x in (a, b, c))
    return ops.cast(a * b + c, "float32")


def _in_ratio(x, output):
    """Returns the ratio of steps, the integers and the zero point, float32."""
    ratio = ops.cast(x.params.scale, "float32") / ops.cast(output.params.scale, "float32")
    return ratio, ops.cast(x.steps, "float32") + _from_0(x), _from_0(x)


def _from_0(grid):
    """Returns the zero point of an 8-bit grid whose integers are counted from 0, float32."""
    return ops.cast(grid.params.zero_point, "float32") + 128.0


def product(inputs, output):
    """QLinearMul: the zero point is within the rounded product.

    q = round((qa - za) * (qb - zb) * ((a_scale * b_scale) / scale) + z),  all in float32
    """
    a, b = inputs
    ratio = a.params.scale * b.params.scale / output.params.scale
    return _behind_zero_point(a.steps * b.steps * ratio + _from_0(output), output)


def _behind_zero_point(q, output):
    return ops.round(q) - _from_0(output)


def to_step(inputs, output):
    """DequantizeLinear, then QuantizeLinear: `(x * x_scale) / scale`, in float32."""
    (x,) = inputs
    return ops.cast(x.steps, "float32") * x.params.scale / output.params.scale


def matrix_product(inputs, output, sums):
    """QLinearMatMul of two computed tensors: `sums * ((a_scale * b_scale) / scale)`."""
    a, b = inputs
    return sums * (a.params.scale * b.params.scale / output.params.scale)


def mean(inputs, output, sums, count):
    """QLinearGlobalAveragePool: `sums * (x_scale / (scale * count))`, in float32."""
    (x,) = inputs
    count = ops.cast(count, "float32")
    return ops.cast(sums, "float32") * (x.params.scale / (output.params.scale * count))


def average(inputs, output, mean_of, whole=False):
    """QLinearAveragePool, on the grid of its input: the mean of real values.

        q = round(mean((q - z) * scale) / scale + z),  in float32

    That of a whole channel is QLinearGlobalAveragePool; see `mean`.

    Args:
        inputs: `Grid` of the input.
        output: `Grid` of the output, that of the input.
        mean_of: Function of a float tensor that returns the means.
        whole: Whether they are of all values of a channel.
    """
    (x,) = inputs
    if whole:
        means = mean_of(ops.cast(x.steps, "float64"))
        count = ops.size(x.steps) // ops.size(means)
        sums = ops.round(means * ops.cast(count, "float64"))
        return ops.round(mean(inputs, output, sums, count))
    means = mean_of(ops.cast(x.steps, "float32") * x.params.scale)
    return _behind_zero_point(means / x.params.scale + _from_0(output), output)


def average_in_float(inputs, output, mean_of, whole=False):
    """AveragePool in float32, on the grid of its input."""
    del whole
    (x,) = inputs
    means = mean_of(ops.cast(x.steps, "float32") * x.params.scale)
    return ops.round(means / output.params.scale)


def bilinear(inputs, output, size):
    """Resize of the integers as float32, and Round: halves to even.

    Args:
        inputs: `Grid` of images `(batch, height, width, channels)`.
        output: `Grid` of the output, that of the input.
        size: Height and width of the output.
    """
    del output
    (x,) = inputs
    start = _from_0(x) if x.spec.stored_bits == 8 else 0.0
    q = ops.cast(x.steps, "float32") + start
    return ops.round(ops.image.resize(q, size, "bilinear", antialias=False)) - start


def _both(kernel):
    """Returns the kernel of 8 bits; in 16 ONNX Runtime fuses nothing and all is float."""
    return {8: kernel}


_STEPS = {
    "ADD": _both(add),
    "AVERAGE_POOL_2D": {8: average, 16: average_in_float},
    "BATCH_MATMUL": _both(matrix_product),
    "MEAN": _both(mean),
    "MUL": _both(product),
    "QUANTIZE": {8: to_step, 16: to_step},
    "RESIZE_BILINEAR": {8: bilinear, 16: bilinear},
}


def _row(name: str, operator: Operator) -> Operator:
    """Returns LiteRT's row with the arithmetic of ONNX Runtime, which takes any width."""
    widths = operator.num_bits if operator.grid is None else (8, 16)
    return dataclasses.replace(
        operator,
        steps=_STEPS.get(name, {}),
        num_bits=widths,
        inexact={},
        longest={},
        series={},
        grouped=operator.weight_bits is not None and name == "FULLY_CONNECTED",
    )


OPERATORS = {name: _row(name, operator) for name, operator in litert.OPERATORS.items()}


def rounding(product: Product) -> str:
    """Returns how a kernel rounds: MLAS once, in float32; wider integers it computes in float."""
    return "float32" if product.activation_bits <= 8 else "float64"


def at_run_time(product: Product) -> dict:
    """Returns how integers are found when a model runs; files have none of those."""
    return {"by_vector": product.operator == "FULLY_CONNECTED", "rounding": "once"}


ONNXRUNTIME = Device(
    "onnxruntime",
    "ONNX Runtime's kernels on a CPU",
    OPERATORS,
    rounding,
    runtime="onnxruntime",
    at_run_time=at_run_time,
)
