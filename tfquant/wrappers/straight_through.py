"""Integers forward, straight-through gradients backward."""

import keras
import tensorflow as tf
from keras import tree

from tfquant.quantizers import grid_of, on_grid


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
    places = [i for i, x in enumerate(flat) if _is_float(x)]
    if not places and not variables:
        return exact(args), []
    returned = []
    held = [(variable, tf.convert_to_tensor(variable.value)) for variable in frozen]

    def given(tensors):
        """Returns the scope in which variables are read as tensors, and the arguments."""
        tensors = list(tensors)
        leaves = list(flat)
        for place in places:
            leaves[place] = on_grid(tensors.pop(0), grid_of(flat[place]))
        # Read as tensors, so that the function below depends on nothing but its arguments.
        mapping = [*zip(variables, tensors, strict=True), *held]
        scope = keras.StatelessScope(mapping, collect_losses=True, initialize_variables=False)
        return scope, tree.pack_sequence_as(args, leaves)

    @tf.custom_gradient
    def joined(*tensors):
        scope, arguments = given(tensors)
        with scope:
            outputs = exact(arguments)
        returned[:] = outputs, [grid_of(y) for y in tree.flatten(outputs)], scope.losses

        def gradient(*upstream, variables=()):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(tensors)
                scope, arguments = given(tensors)
                with scope:
                    flat_outputs = tree.flatten(real(arguments))
            pairs = zip(flat_outputs, upstream, strict=True)
            pairs = [(y, dy) for y, dy in pairs if _is_float(y) and dy is not None]
            outputs, upstream = map(list, zip(*pairs, strict=True))
            upstream = [tf.cast(dy, y.dtype) for y, dy in zip(outputs, upstream, strict=True)]
            found = tape.gradient(outputs, list(tensors), upstream)
            # Variables of frozen layers, which TensorFlow saw being read.
            return (found, [None] * len(variables)) if variables else found

        return tree.flatten(outputs), gradient

    values = [tf.convert_to_tensor(variable.value) for variable in variables]
    outputs = joined(*(flat[place] for place in places), *values)
    structure, grids, losses = returned
    for y, grid in zip(outputs, grids, strict=True):
        if grid is not None:
            on_grid(y, grid)
    return tree.pack_sequence_as(structure, outputs), losses


def _is_float(x):
    return tf.is_tensor(x) and x.dtype.is_floating
