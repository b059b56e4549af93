"""Attention, unfolded into dense layers, products of tensors and softmax."""

import math

import keras
import numpy as np
from keras import layers, ops

from tfquant.configs.elementwise import OutputConfig, SameGridConfig
from tfquant.configs.parts import (
    CausalMaskConfig,
    ConstantConfig,
    MaskedScoresConfig,
    MatMulConfig,
    ScoresConfig,
)
from tfquant.layers.parts import Affine, CausalMask, Constant, MatMul, RepeatHeads, Select
from tfquant.pieces.affine import channel_affine
from tfquant.pieces.parts import Parts
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
    axis of as many steps; over one axis, a product of matrices for each step of the other.
    """
    parts = _Layer(layer, scheme)
    if parts.axes not in (None, 1, 2, (1, 2), [1, 2]):
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
            if not (plain and sized and all(m is None for m in others)):
                return None
            if parts.axes in (1, 2):
                return parts.by_rows(given)
            rows = [parts.joined(f"given{i}", x) for i, x in enumerate(given)]
            return parts.parted("parted", call(*rows), query.shape[1:3])
        if len(query.shape) != 3 or len(value.shape) != 3 or parts.axes == 2:
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


class _Scores(Parts):
    """The parts of anything that attends: scores, and the masks that are added to them."""

    def repeat(self, name, x, heads):
        """Repeats the heads of keys and values for each head of their group of queries."""
        times = heads // x.shape[1]
        if times == 1:
            return x
        return self.make(f"{name}_repeat", RepeatHeads, times, config=SameGridConfig())(x)

    def hidden(self, name, mask):
        """Returns `HIDDEN` where a mask is 0 and 0 where it is 1."""
        config = OutputConfig(self.scheme.activations)
        if not keras.backend.is_float_dtype(mask.dtype):
            shown, hidden = (
                self.make(f"{name}_mask_{side}", self._number, number, mask, config=config)(mask)
                for side, number in (("shown", 0.0), ("hides", HIDDEN))
            )
            chosen = mask if mask.dtype == "bool" else ops.cast(mask, "bool")
            select = self.make(f"{name}_mask_hidden", Select, config=SameGridConfig())
            return select(chosen, shown, hidden)
        # Two operators with one constant each: both results have exact integers.
        shifted = self.make(f"{name}_mask_shifted", Affine, 1.0, -1.0, config=config)(mask)
        return self.make(f"{name}_mask_hidden", Affine, -HIDDEN, config=config)(shifted)

    @staticmethod
    def _number(number, like, name):
        """Returns the layer that holds one number for all that a tensor has."""
        values = np.full((1,) * len(like.shape), number, np.float32)
        return Constant.of(values, trainable=False, name=name)

    def scores(self, q, k, masks, causal):
        """Multiplies queries and keys and adds the masks."""
        x = self.make("scores", MatMul, config=ScoresConfig(self.scheme.activations))(q, k)
        config = MaskedScoresConfig(self.scheme.activations)
        for number, mask in enumerate(masks):
            x = self.make(f"masked{number}", layers.Add, config=config)([x, mask])
        if causal:
            config = CausalMaskConfig(self.scheme.activations)
            x = self.make("causal", CausalMask, HIDDEN, config=config)(x)
        return x


class _Layer(_Scores):
    """Makes the layers that an attention layer consists of.

    Args:
        layer: Built attention layer.
        scheme: `Scheme`.
    """

    def __init__(self, layer, scheme):
        super().__init__(layer.name, scheme, layer.trainable)
        self.rate = getattr(layer, "dropout", 0)
        # The projections by name, `(kernel, bias or None)`; paths end with ".../query/kernel".
        self.weights = {}
        for variable in layer.weights:
            *_, projection, name = variable.path.split("/")
            self.weights.setdefault(projection, {})[name] = variable.numpy()
        axes = layer.get_config().get("attention_axes")
        self.axes = axes[0] if isinstance(axes, (list, tuple)) and len(axes) == 1 else axes
        self.query_heads = self.weights["query"]["kernel"].shape[1]

    def kernel(self, name):
        """Returns kernel, a matrix, and bias of a projection to heads; `None` without a bias."""
        kernel, bias = self.weights[name]["kernel"], self.weights[name].get("bias")
        if name == "query":
            scale = 1.0 / math.sqrt(kernel.shape[-1])
            kernel, bias = kernel * scale, None if bias is None else bias * scale
        return kernel.reshape(len(kernel), -1), bias

    def heads(self, name, x, order):
        """Projects `(batch, time, dim)` to heads, in the order of axes that a product reads."""
        kernel, bias = self.kernel(name)
        _, heads, size = self.weights[name]["kernel"].shape
        y = self._project(name, kernel, bias, x)
        y = self.make(f"{name}_heads", layers.Reshape, (x.shape[1] or -1, heads, size))(y)
        return self.make(f"{name}_order", layers.Permute, order)(y)

    def by_rows(self, given):
        """Attends along one axis of `(batch, height, width, dim)`, for each step of the other.

        Args:
            given: Query, value, and key if it is another.
        """
        q, v, k = (given[i] for i in (0, 1, -1))
        steps, other, values = self.axes, 3 - self.axes, 4

        def heads(name, x, order):
            kernel, bias = self.kernel(name)
            _, number, size = self.weights[name]["kernel"].shape
            y = self._project(name, kernel, bias, x)
            y = self.make(f"{name}_heads", layers.Reshape, (*x.shape[1:3], number, size))(y)
            return self.make(f"{name}_order", layers.Permute, order)(y)

        q = heads("query", q, (other, 3, steps, values))
        k = heads("key", k, (other, 3, values, steps))
        v = heads("value", v, (other, 3, steps, values))
        scores = self.scores(q, k, [], False)
        probabilities = self.make("softmax", layers.Softmax)(scores)
        config = MatMulConfig(self.scheme.activations)
        mixed = self.make("mix", MatMul, config=config)(self.drop(probabilities), v)
        name = "attention_output"
        kernel, bias = self.weights[name]["kernel"], self.weights[name].get("bias")
        order = (3, 1, 2, 4) if self.axes == 1 else (1, 3, 2, 4)
        x = self.make("mix_order", layers.Permute, order)(mixed)
        x = self.make("mix_joined", layers.Reshape, (*x.shape[1:3], math.prod(kernel.shape[:2])))(x)
        return self._project(name, kernel.reshape(-1, kernel.shape[-1]), bias, x)

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
        return self._project(name, kernel.reshape(-1, dim), bias, x)

    def _project(self, name, kernel, bias, x):
        return self.dense(name, kernel, None if bias is None else bias.reshape(-1), x)

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
        return self.make("dropout", layers.Dropout, self.rate)(x) if self.rate else x


def unfold_dot_product_attention(operation, scheme):
    """Unfolds `keras.ops.dot_product_attention`; see `tfquant.unfold.unfold`."""

    def call(query, key, value, bias=None, mask=None, scale=None):
        if operation.attn_logits_soft_cap is not None or bias is not None or not scheme.static:
            return None
        parts = _Scores(operation.name, scheme)
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
        parts = _Scores(layer.name, scheme)
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
    layer = QuantizeAnnotate(Constant.of(values[:1], False, f"{parts.name}_mask"), config)
    return layer(like)
