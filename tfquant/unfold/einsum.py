"""Einsum layers, unfolded into dense layers."""

import numpy as np
from keras import activations, layers

from tfquant.pieces.parts import Parts
from tfquant.pieces.products import axes_of
from tfquant.wrappers import QuantizeAnnotate


def unfold_einsum(layer, scheme):
    """Unfolds an `EinsumDense` that multiplies by a matrix; see `tfquant.unfold.unfold`.

    The summed axes must be the last of the input and the first of the kernel, and the kernel's
    others the last of the output, in the same order: `abc,cde->abde`, `abcd,cde->abe`. What the
    rest computes stays whole.
    """
    inputs, kernel_axes, outputs = axes_of(layer.equation)
    summed = [a for a in kernel_axes if a in inputs]
    made = [a for a in kernel_axes if a not in inputs]
    kept = inputs[: len(inputs) - len(summed)]
    if (
        inputs[len(kept) :] != summed
        or kernel_axes != summed + made
        or outputs != kept + made
        or "..." in summed
        or (layer.bias is not None and tuple(layer.bias.shape) != layer.kernel.shape[len(summed) :])
    ):
        return None
    sizes = layer.kernel.shape[: len(summed)], layer.kernel.shape[len(summed) :]
    rows, columns = (int(np.prod(size)) for size in sizes)
    kernel = layer.kernel.numpy().reshape(rows, columns)
    bias = None if layer.bias is None else layer.bias.numpy().reshape(-1)
    parts = Parts(layer.name, scheme, layer.trainable)
    function = layer.activation or activations.linear

    def reshape(x, shape, name):
        if shape.count(None) > 1:
            return None
        shape = [-1 if n is None else n for n in shape]
        return QuantizeAnnotate(layers.Reshape(shape, name=f"{layer.name}_{name}"))(x)

    def call(x, training=None):
        del training
        free = list(x.shape[1 : len(x.shape) - len(summed)])
        if len(summed) > 1:
            x = reshape(x, [*free, rows], "joined")
        y = None if x is None else parts.dense("dense", kernel, bias, x)
        if y is not None and len(made) != 1:
            y = reshape(y, [*free, *sizes[1]], "axes")
        if y is None or function is activations.linear:
            return y
        return parts.make("activation", layers.Activation, function)(y)

    return call
