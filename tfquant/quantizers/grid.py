"""The grid that a tensor's values lie on, carried by the tensor itself.

Keras lets a mask travel on a tensor from layer to layer; a grid travels the same way. A layer that
finds a grid on its input knows the integers behind the real values and can compute what the device
computes. An operation that returns a new tensor drops the grid: the next layer then computes with
real values.
"""

from typing import Any, NamedTuple

from keras import ops

from tfquant.numerics import QuantParams, QuantSpec

# Group of what is stored: its values go to any grid that is asked for.
STORED = "stored"


class Grid(NamedTuple):
    """Where the values of a quantized tensor lie.

    Attributes:
        params: `QuantParams`.
        spec: `QuantSpec`.
        steps: `q - zero_point` of each value, a float tensor of integers, or `None` when nobody
            computed it yet.
        group: Name shared by tensors whose grids agree, or `None`.
    """

    params: QuantParams
    spec: QuantSpec
    steps: Any = None
    group: str | None = None


def on_grid(x, grid: Grid | None):
    """Notes on `x` that its values lie on `grid`, and returns `x`."""
    x.tfquant_grid = grid
    return x


def grid_of(x) -> Grid | None:
    """Returns the grid that the values of `x` lie on, or `None` when nothing is known."""
    return getattr(x, "tfquant_grid", None)


def steps_of(x):
    """Returns `q - zero_point` of a tensor that is on a grid, a float tensor of integers."""
    grid = grid_of(x)
    if grid.steps is not None:
        return grid.steps
    return ops.round(ops.cast(x, "float32") / grid.params.scale)


def from_steps(steps, quantizer, clamp=None):
    """Rounds output steps to the grid of `quantizer`; see `round_to`."""
    return round_to(Grid(quantizer.params(), quantizer.spec, group=quantizer.group), steps, clamp)


def round_to(grid: Grid, steps, clamp=None):
    """Rounds output steps and returns the real values, which carry their grid.

        q = clip(round(steps) + zero_point, qmin, qmax);  y = scale * (q - zero_point)

    Args:
        grid: `Grid` of the output.
        steps: Real values divided by the scale, not yet rounded.
        clamp: Real `(low, high)` of an activation computed together with the rounding, `None` for
            no bound, or `None`.

    Returns:
        Tensor of the shape of `steps`.
    """
    params, spec = grid.params, grid.spec
    low, high = spec.qmin - params.zero_point, spec.qmax - params.zero_point
    if clamp is not None:
        # Rounding is monotone: bounding behind it is bounding before it.
        low = low if clamp[0] is None else ops.maximum(low, ops.round(clamp[0] / params.scale))
        high = high if clamp[1] is None else ops.minimum(high, ops.round(clamp[1] / params.scale))
    # Two passes are several times faster than one `clip`.
    steps = ops.minimum(ops.maximum(ops.round(steps), low), high)
    return on_grid(steps * params.scale, grid._replace(steps=steps))
