"""The affine map between real values and integers, on tensors of the Keras backend.

Integers are carried as floats: float32 holds every integer up to 2**24 exactly, and every backend
operation takes them.
"""

from keras import ops

from tfquant.numerics.params import QuantParams
from tfquant.numerics.spec import QuantSpec


def quantize(x, params: QuantParams, spec: QuantSpec):
    """Maps real values to integers of the grid.

        q = clip(round(x / scale) + zero_point, qmin, qmax)

    Rounding is to nearest, ties to even.

    Args:
        x: Real tensor.
        params: `QuantParams`; shapes broadcast against `x`.
        spec: `QuantSpec` giving `qmin` and `qmax`.

    Returns:
        Float tensor of the shape of `x`, holding integers.
    """
    zero_point = ops.cast(params.zero_point, x.dtype)
    return ops.clip(ops.round(x / params.scale) + zero_point, spec.qmin, spec.qmax)


def dequantize(q, params: QuantParams):
    """Maps integers to real values: `scale * (q - zero_point)`.

    Args:
        q: Float tensor holding integers.
        params: `QuantParams`; shapes broadcast against `q`.

    Returns:
        Real tensor of the shape of `q`.
    """
    return (q - ops.cast(params.zero_point, q.dtype)) * params.scale


def fake_quantize(x, params: QuantParams, spec: QuantSpec):
    """Rounds `x` to the grid of `spec` and returns real values.

        q = clip(round(x / scale) + zero_point, qmin, qmax)
        y = scale * (q - zero_point)

    The gradient passes straight through where `q` was not clipped and is zero elsewhere
    (Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877).

    Args:
        x: Real tensor.
        params: `QuantParams`; shapes broadcast against `x`.
        spec: `QuantSpec` giving `qmin` and `qmax`.

    Returns:
        Real tensor of the shape of `x`.

    Example:

    >>> spec = QuantSpec(8)
    >>> params = choose_params(-1.0, 1.0, spec)
    >>> float(fake_quantize(ops.array([0.5]), params, spec)[0])
    0.501960813999176
    """
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
