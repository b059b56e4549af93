"""The grid that a tensor's values lie on, carried by the tensor itself.

Keras lets a mask travel on a tensor from layer to layer; a grid travels the same way. A layer that
finds a grid on its input knows the integers behind the real values and can compute what the device
computes. An operation that returns a new tensor drops the grid: the next layer then computes with
real values.
"""

from typing import NamedTuple

from tfquant.numerics import QuantParams, QuantSpec


class Grid(NamedTuple):
    """Parameters and specification of a quantized tensor."""

    params: QuantParams
    spec: QuantSpec


def on_grid(x, grid: Grid | None):
    """Notes on `x` that its values lie on `grid`, and returns `x`."""
    x.tfquant_grid = grid
    return x


def grid_of(x) -> Grid | None:
    """Returns the grid that the values of `x` lie on, or `None` when nothing is known."""
    return getattr(x, "tfquant_grid", None)
