"""Layers that move values, or pick some: integers as they are."""

import numpy as np
from keras import layers

from tfquant.layers import parts
from tfquant.nodes.site import writes
from tfquant.nodes.writer import Value


@writes(
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    "Copy",
    parts.Remask,
    parts.Unmask,
)
def identity(site):
    """The tensor itself."""
    return site.x


@writes(layers.Flatten, layers.Reshape, "Reshape")
def reshape(site):
    """Reshape, of channels last."""
    w = site.writer
    x = w.layout(site.x, False)
    if x.shape[1:] == site.shape[1:]:
        return Value(site.shape, x.q, x.step, x.real)
    return w.moved([x], site.shape, lambda names: w.reshaped(names[0], site.shape[1:]))


@writes(layers.Permute, "Transpose")
def permute(site):
    """Transpose."""
    w = site.writer
    x = w.layout(site.x, False)
    operation = site.operation
    order = (0, *site.layer.dims) if operation is None else operation.axes
    order = tuple(reversed(range(len(x.shape)))) if order is None else order
    return w.moved([x], site.shape, lambda names: w.add("Transpose", names, perm=list(order)))


@writes(layers.Concatenate, "Concatenate")
def concatenate(site):
    """Concat, in the layout of the first tensor that has its channels behind the batch."""
    w, xs = site.writer, [_whole(site, x) for x in site.xs]
    axis = (site.operation or site.layer).axis
    first = any(x.first for x in xs)
    xs = [w.layout(x, first) for x in xs]
    at = w.axis(axis, len(site.shape), first)
    return w.moved(xs, site.shape, lambda names: w.add("Concat", names, axis=at), first)


def _whole(site, x):
    """Returns a constant once for each row of the batch."""
    if x.held is None:
        return x
    w, others = site.writer, [y for y in site.xs if y.held is None]
    like = w.layout(others[0], False)
    batch = w.add("Shape", [like.q or like.real], end=1)
    ones = w.constant(np.ones(len(x.shape) - 1, np.int64))
    shape = w.add("Concat", [batch, ones], axis=0)
    return w.moved([x], x.shape, lambda names: w.add("Expand", [names[0], shape]), x.first)


@writes(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
def zero_padding(site):
    """Pad with the integer of 0."""
    return _pad(site, [(0, 0), *np.reshape(site.layer.padding, (-1, 2)).tolist(), (0, 0)])


@writes("Pad")
def padding(site):
    """Pad with the integer of 0, or with what is reflected."""
    mode = site.operation.mode
    if mode == "symmetric" or any(site.args[1:]) or site.kwargs.get("constant_values"):
        raise TypeError("Zeros, or values reflected, are expected around a tensor")
    pairs = np.broadcast_to(site.operation.pad_width, (len(site.shape), 2))
    return _pad(site, pairs.tolist(), mode)


def _pad(site, pairs, mode="constant"):
    w, x = site.writer, site.x
    if x.first:
        pairs = [pairs[0], pairs[-1], *pairs[1:-1]]
    pads = w.constant(np.array([p[0] for p in pairs] + [p[1] for p in pairs], np.int64))

    def write(names):
        number = w.constant(x.step.dtype.type(x.step.zero_point)) if names[0] == x.q else ""
        return w.add("Pad", [names[0], pads, number], mode=mode)

    return w.moved([x], site.shape, write, x.first)


@writes(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D)
def cropping(site):
    """Slice."""
    cropping, w, x = site.layer.cropping, site.writer, site.x
    rank = len(x.shape)
    pairs = [tuple(np.broadcast_to(cropping, 2))] if rank == 3 else cropping
    axes = [w.axis(a, rank, x.first) for a in range(1, rank - 1)]
    ends = [np.iinfo(np.int64).max if not e else -e for _, e in pairs]
    return w.moved(
        [x], site.shape, lambda n: _slice(w, n[0], [b for b, _ in pairs], ends, axes), x.first
    )


def _slice(w, name, starts, ends, axes, steps=None):
    names = [w.constant(np.array(v, np.int64)) for v in (starts, ends, axes)]
    if steps is not None and any(s != 1 for s in steps):
        names.append(w.constant(np.array(steps, np.int64)))
    return w.add("Slice", [name, *names])


@writes(layers.RepeatVector)
def repeat_vector(site):
    """Tile of `(batch, 1, features)`."""
    w, x = site.writer, site.x
    times = w.constant(np.array([1, site.layer.n, 1], np.int64))

    def write(names):
        return w.add("Tile", [w.reshaped(names[0], [1, x.shape[-1]]), times])

    return w.moved([x], site.shape, write)


@writes(layers.UpSampling1D)
def upsampling_1d(site):
    """Resize of `(batch, channels, time)` to the nearest."""
    return _resize(site, "nearest")


@writes(layers.UpSampling2D, layers.Resizing)
def resize_images(site):
    """Resize, nearest on integers as they are, linear in float."""
    layer = site.layer
    aspect = any(getattr(layer, f"{how}_to_aspect_ratio", False) for how in ("crop", "pad"))
    if layer.interpolation not in ("nearest", "bilinear") or aspect:
        raise ValueError(
            "Images resized to the nearest, or bilinear, are expected. "
            f"Received: layer '{site.name}'."
        )
    return _resize(site, layer.interpolation)


def _resize(site, interpolation):
    w = site.writer
    x = w.layout(site.x, True)
    old, new = x.shape[1:-1], site.shape[1:-1]
    if None in (*old, *new):
        raise ValueError(f"Images of a known size are expected. Received: layer '{site.name}'.")
    scales = np.array([1, 1, *(m / n for n, m in zip(old, new, strict=True))], np.float32)
    names = ["", w.constant(scales)]
    if any(m % n for n, m in zip(old, new, strict=True)):
        batch = w.add("Shape", [x.q or w.real(x)], end=2)
        sizes = w.add("Concat", [batch, w.constant(np.array(new, np.int64))], axis=0)
        names = ["", "", sizes]
    settings = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    if interpolation == "nearest":
        settings = {
            "mode": "nearest",
            "coordinate_transformation_mode": "half_pixel",
            "nearest_mode": "round_prefer_ceil",
        }
        write = lambda n: w.add("Resize", [n[0], *names], **settings)  # noqa: E731
        return w.moved([x], site.shape, write, True)
    resized = lambda name: w.add("Resize", [name, *names], **settings)  # noqa: E731
    if x.step is None:
        return site.value(resized(w.real(x)), True)
    # Of the integers, as they are exact: ONNX Runtime's Resize of integers cuts fractions off.
    kinds = w.onnx.helper.np_dtype_to_tensor_dtype
    real = w.add("Cast", [x.q], to=kinds(np.dtype(np.float32)))
    q = w.add("Cast", [w.add("Round", [resized(real)])], to=kinds(x.step.dtype))
    return Value(site.shape, q, x.step, first=True)


@writes(parts.Split, "Split")
def split(site):
    """Split into parts: of the layer of known sizes, of the operation at places."""
    w = site.writer
    x = w.layout(site.x, False)
    axis = (site.operation or site.layer).axis % len(x.shape)
    sizes = w.constant(np.array([y.shape[axis] for y in site.outputs], np.int64))
    shapes, count = [tuple(y.shape) for y in site.outputs], len(site.outputs)

    def write(names):
        found = w.add("Split", [names[0], sizes], outputs=count, axis=axis)
        return [found] if count == 1 else found

    return w.moved([x], shapes, write)


@writes(parts.Unstack, "Unstack")
def unstack(site):
    """Gather of each step."""
    w = site.writer
    x = w.layout(site.x, False)
    axis = getattr(site.operation, "axis", 1) % len(x.shape)
    gather = lambda n, i: w.add("Gather", [n[0], w.constant(np.int64(i))], axis=axis)  # noqa: E731
    return [
        w.moved([x], tuple(y.shape), lambda names, i=i: gather(names, i))
        for i, y in enumerate(site.outputs)
    ]


@writes(parts.Stack, "Stack")
def stack(site):
    """Unsqueeze of each step, and Concat."""
    w = site.writer
    xs = [w.layout(x, False) for x in site.xs]
    axis = getattr(site.operation, "axis", 1) % len(site.shape)
    at = w.constant(np.array([axis], np.int64))

    def write(names):
        return w.add("Concat", [w.add("Unsqueeze", [n, at]) for n in names], axis=axis)

    return w.moved(xs, site.shape, write)


@writes("GetItem")
def get_item(site):
    """Slice, and Squeeze of axes that one number was taken of."""
    w = site.writer
    x = w.layout(site.x, False)
    keys = site.layer.arguments[1] if hasattr(site.layer, "arguments") else site.args[1]
    keys = list(keys) if isinstance(keys, (tuple, list)) else [keys]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(x.shape) - len(keys) + 1)
    if not all(isinstance(k, (int, slice)) for k in keys):
        raise ValueError(
            f"Slices and numbers are expected in brackets. Received: {keys} in '{site.name}'."
        )
    parts = {a: _part(k) for a, k in enumerate(keys) if k != slice(None)}
    dropped = [a for a, k in enumerate(keys) if isinstance(k, int)]

    def write(names):
        name = names[0]
        if parts:
            starts, ends, steps = zip(*parts.values(), strict=True)
            name = _slice(w, name, starts, ends, list(parts), steps)
        return (
            w.add("Squeeze", [name, w.constant(np.array(dropped, np.int64))]) if dropped else name
        )

    return w.moved([x], site.shape, write)


def _part(key):
    largest = np.iinfo(np.int64).max
    if isinstance(key, int):
        return key, key + 1 if key != -1 else largest, 1
    step = 1 if key.step is None else key.step
    start = (0 if step > 0 else largest) if key.start is None else key.start
    end = (largest if step > 0 else -largest) if key.stop is None else key.stop
    return start, end, step


@writes(parts.Select)
def select(site):
    """Where."""
    w, (condition, a, b) = site.writer, site.args
    xs = [w.layout(x, False) for x in (a, b)]
    condition = w.real(w.layout(condition, False))
    return w.moved(xs, site.shape, lambda n: w.add("Where", [condition, *n]))


@writes(parts.RepeatHeads)
def repeat_heads(site):
    """Each head several times, one behind the other."""
    w, x, times = site.writer, site.writer.layout(site.x, False), site.layer.times
    at = w.constant(np.repeat(np.arange(x.shape[1]), times).astype(np.int64))
    return w.moved([x], site.shape, lambda n: w.add("Gather", [n[0], at], axis=1))


@writes("ExpandDims")
def expand_dims(site):
    """Unsqueeze."""
    w = site.writer
    x = w.layout(site.x, False)
    axis = site.operation.axis % len(site.shape)
    at = w.constant(np.array([axis], np.int64))
    return w.moved([x], site.shape, lambda n: w.add("Unsqueeze", [n[0], at]))


@writes("Squeeze")
def squeeze(site):
    """Squeeze, as a reshape."""
    return reshape(site)
