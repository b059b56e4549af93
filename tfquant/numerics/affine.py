"""The affine map between real values and integers, on tensors of the Keras backend and on arrays.

Integers are carried as floats: float32 holds every integer up to 2**24 exactly, and every backend
operation takes them.
"""

import numpy as np
import tensorflow as tf
from keras import ops

from tfquant.numerics.arrays import ARRAYS, arithmetic
from tfquant.numerics.params import QuantParams
from tfquant.numerics.spec import QuantSpec

# Of the scales of groups: where half precision is normal, and its largest number of 8 bits.
SMALLEST_GROUP_SCALE = 2.0**-14
LARGEST_GROUP_SCALE = 65280.0


def quantize(x, params: QuantParams, spec: QuantSpec):
    """Maps real values to integers of the grid.

        q = clip(round(x / scale) + zero_point, qmin, qmax)

    Rounding is to nearest, ties to even.

    Args:
        x: Real tensor, or array.
        params: `QuantParams`; shapes broadcast against `x`.
        spec: `QuantSpec` giving `qmin` and `qmax`.

    Returns:
        Float tensor of the shape of `x`, holding integers; an array if nothing is a tensor.
    """
    xp = arithmetic(x, *params)
    zero_point = xp.cast(params.zero_point, x.dtype)
    return xp.clip(xp.round(x / params.scale) + zero_point, spec.qmin, spec.qmax)


def dequantize(q, params: QuantParams):
    """Maps integers to real values: `scale * (q - zero_point)`.

    Args:
        q: Float tensor holding integers, or array.
        params: `QuantParams`; shapes broadcast against `q`.

    Returns:
        Real tensor of the shape of `q`; an array if nothing is a tensor.
    """
    xp = arithmetic(q, *params)
    return (q - xp.cast(params.zero_point, q.dtype)) * params.scale


def fake_quantize(x, params: QuantParams, spec: QuantSpec):
    """Rounds `x` to the grid of `spec` and returns real values.

        q = clip(round(x / scale) + zero_point, qmin, qmax)
        y = scale * (q - zero_point)

    The gradient passes straight through where `q` was not clipped and is zero elsewhere
    (Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877).

    Args:
        x: Real tensor, or array.
        params: `QuantParams`; shapes broadcast against `x`.
        spec: `QuantSpec` giving `qmin` and `qmax`.

    Returns:
        Real tensor of the shape of `x`; an array if nothing is a tensor.

    Example:

    >>> spec = QuantSpec(8)
    >>> params = choose_params(-1.0, 1.0, spec)
    >>> float(fake_quantize(ops.array([0.5]), params, spec)[0])
    0.501960813999176
    """
    if arithmetic(x, *params) is ARRAYS:
        with np.errstate(all="ignore"):  # As in a graph.
            return dequantize(quantize(x, params, spec), params)
    zero_point = ops.cast(params.zero_point, x.dtype)

    @ops.custom_gradient
    def rounded(x):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            # Computed again from `x`, which is kept anyway: a tensor less in memory.
            steps = ops.round(x / params.scale)
            inside = ops.logical_and(
                steps >= spec.qmin - zero_point, steps <= spec.qmax - zero_point
            )
            return ops.where(inside, upstream, ops.zeros_like(upstream))

        return (quantize(x, params, spec) - zero_point) * params.scale, gradient

    return rounded(x)


def fake_quantize_at_once(x, params: QuantParams, spec: QuantSpec):
    """Rounds as `fake_quantize` does, to within a unit in the last place.

    One kernel forward and one back, up to 8 bits, where plain operations pass over the tensor a
    dozen times. Ties go up and not to even.

    Args:
        x: Float32 tensor.
        params: `QuantParams` of one number each, or of scalar tensors.
        spec: `QuantSpec`.

    Returns:
        Real tensor of the shape of `x`.
    """
    if spec.num_bits > 8:
        return fake_quantize(x, params, spec)
    low, high = (params.scale * (q - params.zero_point) for q in (spec.qmin, spec.qmax))
    if isinstance(low, np.floating):
        return tf.quantization.fake_quant_with_min_max_args(
            x, float(low), float(high), spec.num_bits, spec.narrow_range
        )
    low, high = (ops.cast(ops.reshape(bound, ()), "float32") for bound in (low, high))
    return tf.quantization.fake_quant_with_min_max_vars(
        x, low, high, num_bits=spec.num_bits, narrow_range=spec.narrow_range
    )


def group_scale(scale):
    """Rounds scales to numbers that half precision and bfloat16 both hold: 8 significant bits.

    Packed weights and `.tflite` files store the scales of groups in half precision, and LiteRT's
    kernels read them as bfloat16: such numbers pass both unchanged, where a scale of 11 bits would
    make the device's weights others than the model's, by up to one part in 512.

    The gradient passes straight through.

    Args:
        scale: Positive float tensor, or array.

    Returns:
        Float32 tensor, or array, of the shape of `scale`, from 2**-14 to 65280; ties go to even.

    Example:

    >>> float(group_scale(ops.array(0.1)))
    0.10009765625
    """
    xp = arithmetic(scale)
    view = xp.view if xp is ARRAYS else tf.bitcast  # Keras below 3.15 has none.

    def rounded(scale):
        bounded = xp.minimum(xp.maximum(scale, SMALLEST_GROUP_SCALE), LARGEST_GROUP_SCALE)
        # On the bits: compilers may leave out a cast to 16 bits and back.
        bits = view(bounded, "int32")
        last = xp.bitwise_and(xp.right_shift(bits, 16), 1)
        bits = xp.bitwise_and(bits + (2**15 - 1) + last, -(2**16))
        return view(bits, "float32")

    @ops.custom_gradient
    def straight_through(scale):
        return rounded(
            scale
        ), lambda *args, upstream=None: args[0] if upstream is None else upstream

    scale = xp.cast(scale, "float32")
    return rounded(scale) if xp is ARRAYS else straight_through(scale)
