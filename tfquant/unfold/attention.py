"""Attention and einsum layers, unfolded into dense layers, products of tensors and softmax."""

import math

import keras
import numpy as np
from keras import activations, layers

from tfquant.configs.elementwise import OutputConfig, SameGridConfig
from tfquant.configs.parts import ConstantConfig, MaskedScoresConfig, MatMulConfig, ScoresConfig
from tfquant.layers.parts import Affine, CausalMask, Constant, MatMul, RepeatHeads
from tfquant.unfold.affine import channel_affine
from tfquant.wrappers import QuantizeAnnotate

# Added to scores that a mask hides. Large against scores, and small enough for the 8-bit grid of a
# mask and the multiplier between it and the grid of scores.
HIDDEN = -1000.0

# What is this large in front of a softmax is a mask and no score. Scores that a mask of -100 hides
# by taking their place would have to lie below -90 themselves to be seen.
LARGE = 100.0


def unfold_attention(layer, scheme):
    """Unfolds multi-head and grouped-query attention; see `tfquant.unfold.unfold`.

        softmax((x @ Wq) @ (x @ Wk)^T / sqrt(d) + mask) @ (x @ Wv) @ Wo

    `1 / sqrt(d)` is folded into `Wq`. Attention over all axes of an image is that over one
    axis of as many steps. Attention over one axis of several stays whole.
    """
    parts = _Layer(layer, scheme)
    if parts.axes not in (None, 1, (1, 2), [1, 2]):
        return None

    def call(
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
        use_causal_mask=False,
    ):
        del training
        if len(query.shape) == 4:
            others = (query_mask, value_mask, key_mask, attention_mask)
            plain = not (return_attention_scores or use_causal_mask)
            given = [x for x in (query, value, key) if x is not None]
            sized = all(len(x.shape) == 4 and None not in x.shape[1:] for x in given)
            if not (plain and sized and parts.axes != 1 and all(m is None for m in others)):
                return None
            rows = [parts.joined(f"given{i}", x) for i, x in enumerate(given)]
            return parts.parted("parted", call(*rows), query.shape[1:3])
        if len(query.shape) != 3 or len(value.shape) != 3:
            return None
        q = parts.heads("query", query, (2, 1, 3))
        k = parts.heads("key", value if key is None else key, (2, 3, 1))
        k = parts.repeat("key", k, parts.query_heads)
        v = parts.repeat("value", parts.heads("value", value, (2, 1, 3)), parts.query_heads)
        masks = [
            parts.mask("query", query_mask, (-1, 1)),
            parts.mask("value", value_mask, (1, -1)),
            parts.mask("key", key_mask, (1, -1)),
            parts.mask("attention", attention_mask),
        ]
        scores = parts.scores(q, k, [m for m in masks if m is not None], use_causal_mask)
        probabilities = parts.make("softmax", layers.Softmax)(scores)
        mixed = parts.make("mix", MatMul, config=MatMulConfig(scheme.activations))(
            parts.drop(probabilities), v
        )
        output = parts.join(mixed)
        return (output, probabilities) if return_attention_scores else output

    return call


class _Parts:
    """Makes the layers that attention consists of, each marked.

    Args:
        layer: What is unfolded; its name is their prefix.
        scheme: `Scheme`.
    """

    def __init__(self, layer, scheme):
        self.layer, self.scheme = layer, scheme
        self.made = {}

    def make(self, name, make, *args, config=None, **kwargs):
        """Returns the part `name`, made at its first use."""
        if name not in self.made:
            part = make(*args, name=f"{self.layer.name}_{name}", **kwargs)
            self.made[name] = QuantizeAnnotate(part, config if self.scheme.static else None)
        return self.made[name]

    def repeat(self, name, x, heads):
        """Repeats the heads of keys and values for each head of their group of queries."""
        times = heads // x.shape[1]
        if times == 1:
            return x
        return self.make(f"{name}_repeat", RepeatHeads, times, config=SameGridConfig())(x)

    def hidden(self, name, mask):
        """Returns `HIDDEN` where a mask is 0 and 0 where it is 1."""
        # Two operators with one constant each: both results have exact integers.
        config = OutputConfig(self.scheme.activations)
        shifted = self.make(f"{name}_mask_shifted", Affine, 1.0, -1.0, config=config)(mask)
        return self.make(f"{name}_mask_hidden", Affine, -HIDDEN, config=config)(shifted)

    def scores(self, q, k, masks, causal):
        """Multiplies queries and keys and adds the masks."""
        x = self.make("scores", MatMul, config=ScoresConfig(self.scheme.activations))(q, k)
        config = MaskedScoresConfig(self.scheme.activations)
        for number, mask in enumerate(masks):
            x = self.make(f"masked{number}", layers.Add, config=config)([x, mask])
        if causal:
            x = self.make("causal", CausalMask, HIDDEN, config=config)(x)
        return x


class _Layer(_Parts):
    """Makes the layers that an attention layer consists of.

    Args:
        layer: Built attention layer.
        scheme: `Scheme`.
    """

    def __init__(self, layer, scheme):
        super().__init__(layer, scheme)
        # The projections by name, `(kernel, bias or None)`; paths end with ".../query/kernel".
        self.weights = {}
        for variable in layer.weights:
            *_, projection, name = variable.path.split("/")
            self.weights.setdefault(projection, {})[name] = variable.numpy()
        axes = layer.get_config().get("attention_axes")
        self.axes = axes[0] if isinstance(axes, (list, tuple)) and len(axes) == 1 else axes
        self.query_heads = self.weights["query"]["kernel"].shape[1]

    def heads(self, name, x, order):
        """Projects `(batch, time, dim)` to heads, in the order of axes that a product reads."""
        kernel, bias = self.weights[name]["kernel"], self.weights[name].get("bias")
        if name == "query":
            scale = 1.0 / math.sqrt(kernel.shape[-1])
            kernel, bias = kernel * scale, None if bias is None else bias * scale
        _, heads, size = kernel.shape
        y = self._dense(name, x, kernel.reshape(len(kernel), -1), bias)
        y = self.make(f"{name}_heads", layers.Reshape, (x.shape[1] or -1, heads, size))(y)
        return self.make(f"{name}_order", layers.Permute, order)(y)

    def joined(self, name, x):
        """Makes one axis of two in front of the last."""
        shape = (x.shape[1] * x.shape[2], x.shape[3])
        return self.make(name, layers.Reshape, shape)(x)

    def parted(self, name, x, sizes):
        """Makes two axes of one again."""
        return self.make(name, layers.Reshape, (*sizes, x.shape[-1]))(x)

    def join(self, x):
        """Projects heads `(batch, heads, time, size)` to `(batch, time, dim)`."""
        name = "attention_output"
        kernel, bias = self.weights[name]["kernel"], self.weights[name].get("bias")
        heads, size, dim = kernel.shape
        x = self.make("mix_order", layers.Permute, (2, 1, 3))(x)
        x = self.make("mix_joined", layers.Reshape, (x.shape[1] or -1, heads * size))(x)
        return self._dense(name, x, kernel.reshape(-1, dim), bias)

    def _dense(self, name, x, kernel, bias):
        if name not in self.made:
            dense = self.make(
                name,
                layers.Dense,
                kernel.shape[1],
                use_bias=bias is not None,
                trainable=self.layer.trainable,
            ).layer
            dense.build(x.shape)
            dense.set_weights([kernel] if bias is None else [kernel, bias.reshape(-1)])
        return self.made[name](x)

    def mask(self, name, mask, shape=None):
        """Returns a mask as it is added to the scores."""
        if mask is None:
            return None
        hidden = self.hidden(name, mask)
        if shape is not None:
            length = mask.shape[1] or -1
            shape = (1, *(length if n == -1 else n for n in shape))
        elif len(mask.shape) == 3:
            shape = (1, mask.shape[1] or -1, mask.shape[2])
        if shape is None:
            return hidden
        return self.make(f"{name}_mask_shape", layers.Reshape, shape)(hidden)

    def drop(self, x):
        """Applies dropout, where the layer does."""
        rate = getattr(self.layer, "dropout", 0)
        return self.make("dropout", layers.Dropout, rate)(x) if rate else x


def unfold_dot_product_attention(operation, scheme):
    """Unfolds `keras.ops.dot_product_attention`; see `tfquant.unfold.unfold`."""

    def call(query, key, value, bias=None, mask=None, scale=None):
        if operation.attn_logits_soft_cap is not None or bias is not None or not scheme.static:
            return None
        parts = _Parts(operation, scheme)
        order = lambda name, x, axes: parts.make(f"{name}_order", layers.Permute, axes)(x)  # noqa: E731
        heads = query.shape[2]
        scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        scaled = channel_affine(query, scale, 0.0, False, f"{operation.name}_query_scaled")
        q = order("query", scaled, (2, 1, 3))
        k = parts.repeat("key", order("key", key, (2, 3, 1)), heads)
        v = parts.repeat("value", order("value", value, (2, 1, 3)), heads)
        masks = [] if mask is None else [_added(parts, mask, query)]
        scores = parts.scores(q, k, masks, operation.is_causal)
        probabilities = parts.make("softmax", layers.Softmax)(scores)
        mixed = parts.make("mix", MatMul, config=MatMulConfig(scheme.activations))(probabilities, v)
        return order("mix", mixed, (2, 1, 3))

    return call


def unfold_softmax(layer, scheme):
    """Adds the mask of a softmax to what it reads; see `tfquant.unfold.unfold`."""
    axes = tuple(layer.axis) if isinstance(layer.axis, (tuple, list)) else (layer.axis,)

    def call(x, mask=None):
        if mask is None or not scheme.static or axes not in ((-1,), (len(x.shape) - 1,)):
            return None
        parts = _Parts(layer, scheme)
        config = MaskedScoresConfig(scheme.activations)
        x = parts.make("masked", layers.Add, config=config)([x, _added(parts, mask, x)])
        return QuantizeAnnotate(layers.Softmax(name=layer.name))(x)

    return call


def _added(parts, mask, like):
    """Returns a mask, constant or not, as it is added to the scores."""
    if isinstance(mask, keras.KerasTensor):
        return parts.hidden("added", mask)
    values = np.where(keras.ops.convert_to_numpy(mask), 0.0, HIDDEN).astype(np.float32)
    config = ConstantConfig(parts.scheme.activations)
    layer = QuantizeAnnotate(Constant.of(values[:1], False, f"{parts.layer.name}_mask"), config)
    return layer(like)


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
    in_a, in_b, out = _axes(equation)
    if "..." in out or not scheme.static or not in_a[0] == in_b[0] == out[0]:
        return None
    if any(len(set(axes)) < len(axes) for axes in (in_a, in_b)):
        return None
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
    mark = lambda layer, config=None: QuantizeAnnotate(layer, config)  # noqa: E731
    count = lambda axes: math.prod(sizes[axis] for axis in axes)  # noqa: E731

    def order(x, axes, wanted, side):
        if axes == wanted:
            return x
        axes = [axes.index(axis) for axis in wanted]
        return mark(layers.Permute(axes[1:], name=f"{name}_{side}"))(x)

    def matrices(x, axes, left, right, side):
        x = order(x, axes, [*both, *left, *right], side)
        if len(left) == len(right) == 1 and len(both) < 4:
            return x
        shared = [count(both[1:])] if len(both) > 3 else [sizes[axis] for axis in both[1:]]
        shape = (*shared, count(left), count(right))
        return mark(layers.Reshape(shape, name=f"{name}_{side}_matrices"))(x)

    a = matrices(a, in_a, rows, summed, "left")
    b = matrices(b, in_b, summed, columns, "right")
    y = mark(MatMul(name=name), MatMulConfig(scheme.activations))(a, b)
    kept = [*both, *rows, *columns]
    if len(y.shape) != len(kept) or not len(rows) == len(columns) == 1:
        shape = tuple(sizes[axis] for axis in kept[1:])
        y = mark(layers.Reshape(shape, name=f"{name}_axes"))(y)
    return order(y, kept, out, "order")


def unfold_einsum(layer, scheme):
    """Unfolds an `EinsumDense` that multiplies by a matrix; see `tfquant.unfold.unfold`.

    The summed axes must be the last of the input and the first of the kernel, and the kernel's
    others the last of the output, in the same order: `abc,cde->abde`, `abcd,cde->abe`. What the
    rest computes stays whole.
    """
    inputs, kernel_axes, outputs = _axes(layer.equation)
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
    kernel = layer.kernel.numpy()
    sizes = kernel.shape[: len(summed)], kernel.shape[len(summed) :]
    rows, columns = (int(np.prod(size)) for size in sizes)
    dense = layers.Dense(
        columns,
        use_bias=layer.bias is not None,
        trainable=layer.trainable,
        name=f"{layer.name}_dense",
    )
    dense.build((None, rows))
    bias = [] if layer.bias is None else [layer.bias.numpy().reshape(-1)]
    dense.set_weights([kernel.reshape(rows, columns), *bias])
    dense = QuantizeAnnotate(dense)
    function = layer.activation or activations.linear
    activation = QuantizeAnnotate(layers.Activation(function, name=f"{layer.name}_activation"))

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
        y = None if x is None else dense(x)
        if y is not None and len(made) != 1:
            y = reshape(y, [*free, *sizes[1]], "axes")
        if y is None or function is activations.linear:
            return y
        return activation(y)

    return call


def _axes(equation):
    """Returns the axes of input, kernel and output of an equation, `...` as one of them."""
    inputs, outputs = equation.replace(" ", "").split("->")
    terms = [*inputs.split(","), outputs]
    return [["...", *t[3:]] if t.startswith("...") else list(t) for t in terms]
