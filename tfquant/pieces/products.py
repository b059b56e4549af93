"""Products of two tensors, as products of matrices."""

import math

from keras import layers

from tfquant.configs.parts import MatMulConfig
from tfquant.layers.parts import MatMul
from tfquant.pieces.parts import Parts
from tfquant.wrappers import QuantizeAnnotate


def contract(equation, a, b, name, scheme):
    """Sums products of two KerasTensors as a product of matrices.

    Axes that are summed over, and those of one input alone, become one axis each.

    Args:
        equation: As of `keras.ops.einsum`; all axes of the inputs are summed over or kept.
        a: KerasTensor `(batch, ...)`.
        b: Likewise.
        name: Prefix of the layers' names.
        scheme: `Scheme`.

    Returns:
        KerasTensor, or `None` where no product of matrices computes it.
    """
    in_a, in_b, out = axes_of(equation)
    if "..." in out or not scheme.static or not in_a[0] == in_b[0] == out[0]:
        return None
    if any(len(set(axes)) < len(axes) for axes in (in_a, in_b)):
        return None
    own = [axis for axis in out if (axis in in_a) != (axis in in_b)]
    if own and own[0] in in_b:  # What comes first in the output multiplies from the left.
        a, b, in_a, in_b = b, a, in_b, in_a
    sizes = {**dict(zip(in_b, b.shape, strict=True)), **dict(zip(in_a, a.shape, strict=True))}
    both = [axis for axis in out if axis in in_a and axis in in_b]
    summed = [axis for axis in in_a if axis in in_b and axis not in out]
    rows = [axis for axis in out if axis not in in_b]
    columns = [axis for axis in out if axis not in in_a]
    if {*in_a, *in_b} != {*both, *summed, *rows, *columns} or not summed:
        return None
    if any(sizes[axis] is None for axis in (*both[1:], *summed, *rows, *columns)):
        groups = [both[1:], summed, rows, columns]
        if any(len(g) > 1 for g in groups[1:]) or sum(len(g) == 0 for g in groups[1:]):
            return None
    parts = Parts(name, scheme)
    count = lambda axes: math.prod(sizes[axis] for axis in axes)  # noqa: E731

    def order(x, axes, wanted, side):
        if axes == wanted:
            return x
        axes = [axes.index(axis) for axis in wanted]
        return parts.make(side, layers.Permute, axes[1:])(x)

    def matrices(x, axes, left, right, side):
        x = order(x, axes, [*both, *left, *right], side)
        if len(left) == len(right) == 1 and len(both) < 4:
            return x
        shared = [count(both[1:])] if len(both) > 3 else [sizes[axis] for axis in both[1:]]
        shape = (*shared, count(left), count(right))
        return parts.make(f"{side}_matrices", layers.Reshape, shape)(x)

    a = matrices(a, in_a, rows, summed, "left")
    b = matrices(b, in_b, summed, columns, "right")
    y = QuantizeAnnotate(MatMul(name=name), MatMulConfig(scheme.activations))(a, b)
    kept = [*both, *rows, *columns]
    if len(y.shape) != len(kept) or not len(rows) == len(columns) == 1:
        shape = tuple(sizes[axis] for axis in kept[1:])
        y = parts.make("axes", layers.Reshape, shape)(y)
    return order(y, kept, out, "order")


def axes_of(equation):
    """Returns the axes of input, kernel and output of an equation, `...` as one of them."""
    inputs, outputs = equation.replace(" ", "").split("->")
    terms = [*inputs.split(","), outputs]
    return [["...", *t[3:]] if t.startswith("...") else list(t) for t in terms]
