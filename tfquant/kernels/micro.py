"""TensorFlow Lite Micro's integer kernels, where they compute otherwise than LiteRT's own.

It multiplies and divides all steps in float64, where LiteRT's own kernels do some of it in float32.

Source: TensorFlow Lite Micro, `mul_common.cc`, `leaky_relu_common.cc`, `batch_matmul_common.cc`,
`reduce_common.cc`, `softmax_common.cc`; each is compared with its interpreter by the tests.
"""

from keras import ops

from tfquant.kernels.tables import softmax_16, softmax_reciprocals
from tfquant.numerics.fixed_point import requantize_half_away


def _scales(*grids):
    return [ops.cast(grid.params.scale, "float64") for grid in grids]


def product(inputs, output):
    """Multiplies integers and scales them: `(a * b) * (a_scale * b_scale / scale)`."""
    (a, b), (a_scale, b_scale, scale) = inputs, _scales(*inputs, output)
    steps = ops.cast(a.steps, "float64") * ops.cast(b.steps, "float64")
    return requantize_half_away(steps, a_scale * b_scale / scale)


def matrix_product(rounding):
    """Returns the kernel that scales the sums of a product of two computed tensors."""

    def kernel(inputs, output, sums):
        a_scale, b_scale, scale = _scales(*inputs, output)
        return rounding(sums, a_scale * b_scale / scale)

    return kernel


def total(inputs, output, sums, count):
    """Scales sums: `sums * (s / so)`."""
    del count
    x_scale, scale = _scales(*inputs, output)
    return requantize_half_away(ops.cast(sums, "float64"), x_scale / scale)


def leaky_relu(inputs, output, slope):
    """Scales by `s / so`, and by the slope times that where `x < 0`."""
    (x,), (x_scale, scale) = inputs, _scales(*inputs, output)
    return ops.where(
        x.steps < 0,
        requantize_half_away(x.steps, x_scale * slope / scale),
        requantize_half_away(x.steps, x_scale / scale),
    )


def softmax(inputs, output, beta=1.0):
    """The softmax of 16 bits; its table of `1 / (1 + x)` is made in float32."""
    return softmax_16(inputs, output, beta, _RECIPROCALS)


_RECIPROCALS = softmax_reciprocals("float32")
