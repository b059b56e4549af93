"""Scale and zero point, and how a range becomes them."""

from typing import Any, NamedTuple

import numpy as np

from tfquant.numerics.spec import QuantSpec

# A float32 below this is not normal any more, and its reciprocal overflows.
SMALLEST_SCALE = np.float32(1e-30)

# A grid of one bit may need more than float32 holds.
LARGEST_SCALE = np.finfo(np.float32).max


class QuantParams(NamedTuple):
    """The affine map of a tensor: `real = scale * (q - zero_point)`.

    `scale` and `zero_point` are arrays or tensors that broadcast against the values. Scales are
    float32: that is what every file format stores.
    """

    scale: Any
    zero_point: Any


def choose_params(low, high, spec: QuantSpec) -> QuantParams:
    """Returns the parameters whose grid covers `low` to `high`.

    Asymmetric:

        scale = (high - low) / (qmax - qmin)
        zero_point = clip(round(qmin - low / scale), qmin, qmax)

    Symmetric:

        scale = max(|low|, |high|) / qmax,  zero_point = 0 (the middle, when unsigned)

    The range is first widened to hold zero, so that zero is exactly representable
    (Jacob et al. 2018, arXiv:1712.05877, section 2.1). A range of width zero gets scale 1.

    Args:
        low: Lowest real value; a number or an array, one for each scale.
        high: Highest real value, of the shape of `low`.
        spec: `QuantSpec` of the grid.

    Returns:
        `QuantParams` of float32 `scale` and int32 `zero_point`, both of the shape of `low`.

    Raises:
        ValueError: If a bound is not finite or `low` exceeds `high`.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"A range must be finite. Received: low={low}, high={high}.")
    if (low > high).any():
        raise ValueError(f"`low` must not exceed `high`. Received: low={low}, high={high}.")
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if spec.symmetric:
        middle = 0 if spec.signed else 2 ** (spec.num_bits - 1)
        scale = np.maximum(-low, high) / max(spec.qmax - middle, 1)
        zero_point = np.full(scale.shape, middle)
    else:
        scale = (high - low) / max(spec.qmax - spec.qmin, 1)
        scale = np.minimum(scale, LARGEST_SCALE)
        scale32 = np.where(scale > SMALLEST_SCALE, scale, 1.0).astype(np.float32)
        zero_point = np.clip(np.rint(spec.qmin - low / scale32), spec.qmin, spec.qmax)
    scale = np.minimum(np.where(scale > SMALLEST_SCALE, scale, 1.0), LARGEST_SCALE)
    scale = scale.astype(np.float32)
    return QuantParams(scale, zero_point.astype(np.int32))
