"""Fake-quantization whose grid is learned: gradients to the step, the offset and the range."""

import tensorflow as tf
from keras import ops

from tfquant.numerics.params import QuantParams
from tfquant.numerics.spec import QuantSpec


def learned_params(scale, low, spec: QuantSpec) -> QuantParams:
    """Returns the grid of step `scale` that starts at `low`, moved so that zero is on it.

        zero_point = clip(round(-low / scale), 0, qmax - qmin) + qmin

    Args:
        scale: Steps.
        low: Real value of `qmin`, or `None` for a symmetric grid, whose zero point is 0.
        spec: `QuantSpec`.
    """
    if low is None:
        return QuantParams(scale, 0)
    steps = ops.minimum(ops.maximum(ops.round(-low / scale), 0), spec.qmax - spec.qmin)
    return QuantParams(scale, steps + spec.qmin)


def range_params(low, high, spec: QuantSpec) -> QuantParams:
    """`choose_params` on tensors: the grid that covers `low` to `high`, inside a training step.

    Args:
        low: Lowest real value, at most 0.
        high: Highest real value, at least 0.
        spec: `QuantSpec`, signed.
    """
    if spec.symmetric:
        scale = ops.maximum(-low, high) * (1.0 / spec.qmax)
        return QuantParams(_positive(scale), ops.zeros_like(scale))
    scale = _positive((high - low) * (1.0 / (spec.qmax - spec.qmin)))
    return learned_params(scale, low, spec)


def fake_quantize_step(x, scale, low, spec: QuantSpec, step_gradient_scale=1.0):
    """Rounds `x` to a grid whose step and offset are learned (LSQ and LSQ+).

    With `v = (x - low) / scale` and bounds `n = 0`, `p = qmax - qmin` (a symmetric grid has
    `low = 0`, `n = qmin`, `p = qmax`):

        y = scale * clip(round(v), n, p) + low

        dy/dx     = 1 where n <= round(v) <= p, else 0
        dy/dscale = round(v) - v  inside,  n below,  p above;  times `step_gradient_scale`
        dy/dlow   = 0 inside, 1 outside

    `low` is rounded to a multiple of `scale` first, so that real zero is on the grid, which every
    integer kernel asks for; gradients pass that rounding straight through.

    Esser et al. 2020, "Learned Step Size Quantization", arXiv:1902.08153, equations 1 to 3;
    Bhalgat et al. 2020, "LSQ+", arXiv:2004.09576, equations 2 to 7.

    Args:
        x: Real tensor.
        scale: Steps, positive; shape broadcasts against `x`.
        low: Real value of `qmin`, of the shape of `scale`, or `None` for a symmetric grid.
        spec: `QuantSpec` giving `qmin` and `qmax`.
        step_gradient_scale: What the paper calls `g`.

    Returns:
        Real tensor of the shape of `x`.
    """
    n, p = (spec.qmin, spec.qmax) if low is None else (0, spec.qmax - spec.qmin)

    def forward(x, scale, zero):
        v = x / scale + zero
        rounded = ops.round(v)
        q = ops.minimum(ops.maximum(rounded, n), p)
        return v, q, rounded == q

    def backward(upstream, x, scale, zero):
        # Computed again from `x`: keeping `v` and `q` would take three tensors of its size.
        v, q, inside = forward(x, scale, zero)
        to_x = ops.where(inside, upstream, ops.zeros_like(upstream))
        to_scale = upstream * (q - ops.where(inside, v, ops.zeros_like(v)))
        to_scale = _sum_to(to_scale, scale) * step_gradient_scale
        return to_x, to_scale, _sum_to(upstream - to_x, scale)

    if low is None:

        @ops.custom_gradient
        def symmetric(x, scale):
            def gradient(*args, upstream=None):
                upstream = args[0] if upstream is None else upstream
                return backward(upstream, x, scale, 0.0)[:2]

            return forward(x, scale, 0.0)[1] * scale, gradient

        return symmetric(x, scale)

    @ops.custom_gradient
    def asymmetric(x, scale, low):
        zero = learned_params(scale, low, spec).zero_point - spec.qmin

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return backward(upstream, x, scale, zero)

        return (forward(x, scale, zero)[1] - zero) * scale, gradient

    return asymmetric(x, scale, low)


def fake_quantize_clip(x, alpha, low_share, high_share, spec: QuantSpec):
    """Rounds `x` to the grid of a learned clip (PACT).

        y = fake_quantize(x) on the grid from `alpha * low_share` to `alpha * high_share`

        dy/dx     = 1 where x is within, else 0
        dy/dalpha = high_share above, low_share below, 0 within

    Behind a ReLU `low_share` is 0 and `high_share` 1, which is the paper's case: the gradient to
    the clip is that of clipping alone, rounding is passed straight through.

    Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks",
    arXiv:1805.06085, equations 1 to 3.

    Args:
        x: Real tensor.
        alpha: The clip, a positive scalar.
        low_share: Lowest value in units of `alpha`, at most 0.
        high_share: Highest value in units of `alpha`, at least 0.
        spec: `QuantSpec` giving the grid.

    Returns:
        Real tensor of the shape of `x`.
    """

    @ops.custom_gradient
    def rounded(x, alpha):
        low, high = alpha * low_share, alpha * high_share
        params = range_params(low, high, spec)
        q = ops.round(x / params.scale) + params.zero_point
        q = ops.minimum(ops.maximum(q, spec.qmin), spec.qmax)

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            zero = ops.zeros_like(upstream)
            above, below = ops.where(x > high, upstream, zero), ops.where(x < low, upstream, zero)
            to_alpha = ops.sum(above) * high_share + ops.sum(below) * low_share
            return upstream - above - below, to_alpha

        return (q - params.zero_point) * params.scale, gradient

    return rounded(x, alpha)


def power_of_two(log2_threshold):
    """`2 ** ceil(log2_threshold)`, with the ceiling passed straight through (TQT).

    Jain et al. 2020, "Trained Quantization Thresholds", arXiv:1903.08066, section 3.
    """

    @ops.custom_gradient
    def ceiling(v):
        return ops.ceil(v), lambda *args, upstream=None: args[0] if upstream is None else upstream

    return ops.power(2.0, ceiling(log2_threshold))


def relative(value, unit):
    """Returns `value * unit`, with the gradient divided by `unit` instead of multiplied.

    A step of plain gradient descent on `value` then moves the product as it would move a variable
    that holds the product itself, which is what the papers describe; an optimizer that looks at
    no magnitudes, such as Adam, moves the product by its learning rate times `unit`, however
    small the product is.

    Args:
        value: Real tensor, near one.
        unit: Positive tensor of the same shape.
    """

    @ops.custom_gradient
    def product(value):
        def gradient(*args, upstream=None):
            return (args[0] if upstream is None else upstream) / unit

        return value * unit, gradient

    # A variable of several replicas is none of the arguments of a function with a gradient.
    return product(tf.convert_to_tensor(value))


def _positive(scale):
    return ops.where(scale > 1e-30, scale, ops.ones_like(scale))


def _sum_to(x, like):
    """Sums `x` over the axes along which `like` broadcasts."""
    if len(like.shape) == 0:
        return ops.sum(x)
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1)
    return ops.sum(x, axis=axes, keepdims=True) if axes else x
