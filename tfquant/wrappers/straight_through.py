"""Integers forward, straight-through gradients backward."""

import keras
import tensorflow as tf
from keras import tree

from tfquant.numerics import QuantParams
from tfquant.quantizers import Grid, grid_of, on_grid


def straight_through(exact, real, args, variables, frozen=()):
    """Returns what `exact` computes, with the gradients of `real`.

    Forward, the integers of the device; backward, as if rounding were the identity inside each
    range (Bengio et al. 2013, arXiv:1308.3432). `real` runs only when a gradient is asked for.

        y = exact(args),   dy/dx := d real(args) / dx

    Args:
        exact: Function of `args` that returns a structure of tensors.
        real: Function of `args` that returns such a structure, whose operations have gradients.
        args: Structure. Float tensors in it, which may carry grids, get gradients.
        variables: Keras variables that both functions read and that get gradients.
        frozen: Keras variables that they read and that get none, though TensorFlow could train
            them.

    Returns:
        `(outputs, losses)`: the structure that `exact` returns, its tensors with their grids, and
        what it added to the loss.
    """
    flat = tree.flatten(args)
    if not variables and not any(_is_float(x) for x in flat):
        return exact(args), []
    # All that the functions read goes in as tensors: they depend on nothing else of a graph, which
    # TensorFlow would search for variables up to its inputs.
    grids = [grid_of(x) for x in flat]
    swapped = [*variables, *frozen]
    of_args = [x for x in flat if tf.is_tensor(x)]
    of_grids = [x for grid in grids for x in _parts(grid) if tf.is_tensor(x)]
    of_variables = [tf.convert_to_tensor(variable.value) for variable in swapped]
    followed = [i for i, x in enumerate(of_args) if _is_float(x)]
    start = len(of_args) + len(of_grids)
    followed += range(start, start + len(variables))
    returned = []

    def given(tensors):
        """Returns the scope in which variables are read as tensors, and the arguments."""
        left = iter(tensors)
        take = lambda x: next(left) if tf.is_tensor(x) else x  # noqa: E731
        leaves = [take(x) for x in flat]
        for x, grid in zip(leaves, grids, strict=True):
            if grid is not None:
                scale, zero_point, steps = (take(part) for part in _parts(grid))
                on_grid(x, grid._replace(params=QuantParams(scale, zero_point), steps=steps))
        mapping = list(zip(swapped, left, strict=True))
        scope = keras.StatelessScope(mapping, collect_losses=True, initialize_variables=False)
        return scope, tree.pack_sequence_as(args, leaves)

    @tf.custom_gradient
    def joined(*tensors):
        scope, arguments = given(tensors)
        with scope:
            outputs = exact(arguments)
        returned[:] = outputs, [grid_of(y) for y in tree.flatten(outputs)], scope.losses

        def gradient(*upstream, variables=()):
            watched = [tensors[i] for i in followed]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                scope, arguments = given(tensors)
                with scope:
                    flat_outputs = [y for y in tree.flatten(real(arguments)) if y is not None]
            pairs = zip(flat_outputs, upstream, strict=True)
            pairs = [(y, dy) for y, dy in pairs if _is_float(y) and dy is not None]
            outputs, upstream = map(list, zip(*pairs, strict=True))
            upstream = [tf.cast(dy, y.dtype) for y, dy in zip(outputs, upstream, strict=True)]
            found = dict(zip(followed, tape.gradient(outputs, watched, upstream), strict=True))
            gradients = [found.get(i) for i in range(len(tensors))]
            # Variables of frozen layers, which TensorFlow saw being read.
            return (gradients, [None] * len(variables)) if variables else gradients

        return [y for y in tree.flatten(outputs) if y is not None], gradient

    outputs = iter(joined(*of_args, *of_grids, *of_variables))
    structure, output_grids, losses = returned
    # Some layers return none in the place of a tensor.
    outputs = [None if y is None else next(outputs) for y in tree.flatten(structure)]
    for y, grid in zip(outputs, output_grids, strict=True):
        if grid is not None:
            on_grid(y, grid)
    return tree.pack_sequence_as(structure, outputs), losses


def _parts(grid: Grid | None):
    """Returns what of a grid may be a tensor."""
    return () if grid is None else (grid.params.scale, grid.params.zero_point, grid.steps)


def _is_float(x):
    return tf.is_tensor(x) and x.dtype.is_floating
