"""Pooling: means, which ONNX Runtime has operators of integers for, and largest values."""

from keras import layers

from tfquant.configs.elementwise import pools_all
from tfquant.nodes.kernels import window
from tfquant.nodes.site import writes
from tfquant.nodes.writer import Value


@writes(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)
def global_average(site):
    """GlobalAveragePool, which ONNX Runtime has an operator of integers for."""
    w = site.writer
    if any(x is not None for x in (site.kwargs.get("mask"), *site.args[1:])):
        raise ValueError(f"Means without a mask are expected. Received: layer '{site.name}'.")
    x = w.layout(site.x, True)
    y = site.on_grid(
        Value(
            (None, *(1,) * (len(x.shape) - 2), x.shape[-1]),
            real=w.add("GlobalAveragePool", [w.real(x)]),
            first=True,
        )
    )
    if site.layer.keepdims:
        return site.done(y)
    return site.done(w.moved([y], site.shape, lambda names: w.reshaped(names[0], [x.shape[-1]])))


@writes(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
def average_pool(site):
    """AveragePool, or GlobalAveragePool, whose sums are of integers."""
    w, layer = site.writer, site.layer
    x = w.layout(site.x, True)
    if pools_all(layer, x.shape):
        return site.value(w.add("GlobalAveragePool", [w.real(x)]), True)
    settings = window(layer, x.shape[1:-1], layer.pool_size)
    y = w.add("AveragePool", [w.real(x)], kernel_shape=list(layer.pool_size), **settings)
    return site.value(y, True)


@writes(layers.MaxPooling1D, layers.MaxPooling2D)
def max_pool(site):
    """MaxPool, of integers as they are."""
    w, layer = site.writer, site.layer
    x = w.layout(site.x, True)
    settings = window(layer, x.shape[1:-1], layer.pool_size)
    size = list(layer.pool_size)
    return w.moved(
        [x], site.shape, lambda n: w.add("MaxPool", n, kernel_shape=size, **settings), True
    )


@writes(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D)
def global_max(site):
    """GlobalMaxPool."""
    w = site.writer
    x = w.layout(site.x, True)
    shape = None, *(1,) * (len(x.shape) - 2), x.shape[-1]
    y = site.on_grid(Value(shape, real=w.add("GlobalMaxPool", [w.real(x)]), first=True))
    if site.layer.keepdims:
        return site.done(y)
    return site.done(w.moved([y], site.shape, lambda names: w.reshaped(names[0], [x.shape[-1]])))
