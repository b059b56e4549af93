"""Models drawn at random: layers and functions of Keras, one upon another."""

import math
import random

import keras
import numpy as np
from keras import layers, ops

ACTIVATIONS = (
    *(None, "relu", "relu6", "tanh", "sigmoid", "elu", "selu", "gelu", "silu", "hard_sigmoid"),
    *("hard_silu", "softplus", "leaky_relu", "softsign", "mish", "exponential", "log_softmax"),
    *("softmax", "hard_tanh", "celu"),
)
INPUTS = ((8, 8, 3), (6, 7, 4), (5, 6), (8, 4), (12,), (6, 1), (4, 4, 1))

# Values of a tensor for one row, and rows.
MOST_VALUES = 6000
ROWS = 48


class Drawing:
    """A model that grows: what it has computed so far, and the numbers that decide what is next."""

    def __init__(self, seed):
        self.random, self.tensors = random.Random(seed), []

    def of(self, *things):
        """Returns one of several things."""
        return self.random.choice(things)

    def activation(self):
        return self.of(*ACTIVATIONS) if self.random.random() < 0.5 else self.of(None, "relu")

    def axis(self, x):
        return self.of(*range(1, len(x.shape)))

    def like(self, x):
        """Returns another tensor of the shape of `x`, or `x`."""
        return self.of(*[y for y in self.tensors if y.shape == x.shape and y is not x] or [x])

    def add(self, found) -> bool:
        """Takes what was computed, where it is of a size to go on with."""
        found = found if isinstance(found, list) else [found]
        for y in found:
            sizes = y.shape[1:]
            if None in sizes or not 0 < math.prod(sizes) <= MOST_VALUES:
                return False
            if not 2 <= len(y.shape) <= 5 or y.dtype != "float32":
                return False
        self.tensors += found
        return True

    def step(self) -> bool:
        """Computes one thing more."""
        rank = self.of(None, 4, 3, 2)
        fitting = [x for x in self.tensors if rank in (None, len(x.shape))] or self.tensors
        x = self.of(*fitting[-4:]) if self.random.random() < 0.8 else self.of(*fitting)
        kinds = [(f, 1) for f in ANY] + [(f, 2) for f in BY_RANK.get(len(x.shape), ())]
        functions, weights = zip(*kinds, strict=True)
        (function,) = self.random.choices(functions, weights)
        return self.add(function(self, x))


def merge(draw, x):
    y = draw.like(x)
    kind = draw.of("Add", "Multiply", "Subtract", "Average", "Maximum", "Minimum", "function")
    if kind == "function":
        return draw.of(ops.add, ops.multiply, ops.subtract, ops.maximum, ops.minimum)(x, y)
    more = [draw.like(x)] if draw.of(0, 0, 1) and kind != "Subtract" else []
    return getattr(layers, kind)()([x, y, *more])


def elementwise(draw, x):
    factor, shift = draw.of(0.5, 2.0, -1.5, 1 / 3, 100.0, 0.01), draw.of(0.0, 1.0, -0.3)
    return draw.of(
        lambda: layers.Activation(draw.activation() or "relu")(x),
        lambda: layers.ReLU(draw.of(None, 1.0, 6.0, 2.5), draw.of(0.0, 0.2), draw.of(0.0, 0.3))(x),
        lambda: ops.abs(x),
        lambda: ops.square(ops.clip(x, -4, 4)),
        lambda: ops.sqrt(ops.abs(x) + 0.01),
        lambda: ops.exp(ops.clip(x, -3, 2)),
        lambda: ops.clip(x, *draw.of((-1, 1), (0, 1), (0, 6), (-0.5, 2), (0.2, 0.9))),
        lambda: x * factor + shift,
        lambda: ops.where(x > 0.2, x, x * 0.1),
        lambda: ops.where(x > 0, x, ops.zeros_like(x)),
        lambda: ops.maximum(x, ops.zeros_like(x)),
        lambda: layers.LeakyReLU(draw.of(0.1, 0.3, 0.01))(x),
        lambda: layers.PReLU("uniform", shared_axes=list(range(1, len(x.shape) - 1)) or None)(x),
        lambda: layers.Softmax(axis=draw.axis(x))(x),
        lambda: layers.Rescaling(draw.of(1 / 255, 2.0, 0.1), draw.of(0.0, -1.0, 0.5))(x),
        lambda: layers.Dropout(0.2)(x),
        lambda: ops.log(ops.abs(x) + 0.1),
        lambda: ops.rsqrt(ops.abs(x) + 0.2),
        lambda: 1 / (ops.abs(x) + 0.5),
        lambda: ops.sin(x),
        lambda: ops.logaddexp(x, ops.zeros_like(x)),
    )()


def reshape(draw, x):
    count = math.prod(x.shape[1:])
    first = draw.of(*[n for n in range(1, count + 1) if count % n == 0])
    second = draw.of(*[n for n in range(1, count // first + 1) if (count // first) % n == 0])
    third = count // first // second
    shape = draw.of((count,), (first, count // first), (first, second, third))
    return layers.Reshape(shape)(x) if draw.of(0, 1) else ops.reshape(x, (-1, *shape))


def permute(draw, x):
    order = draw.random.sample(range(1, len(x.shape)), len(x.shape) - 1)
    return layers.Permute(order)(x) if draw.of(0, 1) else ops.transpose(x, (0, *order))


def cut(draw, x):
    axis = draw.axis(x)
    n, where = x.shape[axis], [slice(None)] * len(x.shape)
    where[axis] = slice(draw.random.randrange(max(1, n // 2)), None, draw.of(1, 1, 2))
    if len(x.shape) > 2 and draw.of(0, 0, 0, 1):
        where[axis] = draw.random.randrange(n)
    return x[tuple(where)]


def reduce(draw, x):
    axis, kept = draw.axis(x), len(x.shape) == 2 or draw.of(False, True)
    if draw.of(0, 0, 1):
        return ops.var(x, axis=axis, keepdims=kept)
    return draw.of(ops.mean, ops.sum, ops.max, ops.min)(x, axis=axis, keepdims=kept)


def join(draw, x):
    axis = draw.axis(x)
    others = [y for y in draw.tensors if len(y.shape) == len(x.shape)]
    cut_of = lambda y: (*y.shape[:axis], *y.shape[axis + 1 :])  # noqa: E731
    others = [y for y in others if cut_of(y) == cut_of(x)]
    parts = [x, *(draw.of(*others) for _ in range(draw.of(1, 2)))]
    return layers.Concatenate(axis=axis)(parts) if draw.of(0, 1) else ops.concatenate(parts, axis)


def stack(draw, x):
    if len(x.shape) > 3:
        raise ValueError("Five axes serve nobody.")
    return ops.stack([x, draw.like(x)], axis=draw.of(*range(1, len(x.shape) + 1)))


def dense(draw, x):
    settings = {"use_bias": draw.of(True, True, False), "bias_initializer": "uniform"}
    return layers.Dense(draw.of(1, 3, 5, 8, 16), draw.activation(), **settings)(x)


def dense_twice(draw, x):
    layer = layers.Dense(draw.of(3, 8), draw.activation(), bias_initializer="uniform")
    return [layer(x), layer(draw.like(x))]


def norm(draw, x):
    groups = draw.of(*[n for n in range(1, x.shape[-1] + 1) if x.shape[-1] % n == 0])
    return draw.of(
        layers.LayerNormalization(),
        layers.LayerNormalization(center=False, scale=False),
        layers.RMSNormalization(),
        layers.UnitNormalization(),
        layers.GroupNormalization(groups),
    )(x)


def batch_norm(draw, x):
    layer, rng = layers.BatchNormalization(), np.random.default_rng(draw.random.randrange(99))
    y, n = layer(x), x.shape[-1]
    draws = rng.uniform(0.5, 1.5, n), rng.normal(size=n), rng.normal(size=n), rng.uniform(0.5, 2, n)
    layer.set_weights(draws)
    return y


def broadcast(draw, x):
    if len(x.shape) < 3:
        raise ValueError("A vector has one axis.")
    mean = ops.mean(x, axis=draw.axis(x), keepdims=True)
    return draw.of(
        lambda: x - mean,
        lambda: x * ops.sigmoid(mean),
        lambda: x + mean,
        lambda: ops.maximum(x, mean),
    )()


def split(draw, x):
    first, second = ops.split(x, 2, axis=draw.axis(x))
    return first * ops.sigmoid(second) if draw.of(0, 1) else [first, second]


def pad(draw, x):
    sizes, axis = [(0, 0)] * len(x.shape), draw.axis(x)
    sizes[axis] = draw.of(0, 1), draw.of(1, 2)
    modes = ("constant", "constant", "reflect", "symmetric")
    return ops.pad(x, sizes, draw.of(*modes[: 4 if x.shape[axis] > 3 else 2]))


def constant(draw, x):
    rng = np.random.default_rng(draw.random.randrange(99))
    values = ops.convert_to_tensor(rng.normal(size=(1, *x.shape[1:])).astype("float32"))
    return draw.of(ops.add, ops.multiply, ops.maximum, ops.subtract)(x, values)


def convolution(draw, x):
    of_images = len(x.shape) == 4
    kinds = [layers.Conv1D, layers.SeparableConv1D, layers.DepthwiseConv1D, layers.Conv1DTranspose]
    if of_images:
        kinds = layers.Conv2D, layers.SeparableConv2D, layers.DepthwiseConv2D
        kinds = [*kinds, layers.Conv2DTranspose]
    kind = draw.of(kinds[0], *kinds)
    filters = () if kind is kinds[2] else (draw.of(1, 2, 4, 8),)
    strides, paddings = draw.of(1, 1, 2), ("same", "valid", "causal")
    settings = {"dilation_rate": draw.of(1, 1, 2)} if strides == 1 and kind is kinds[0] else {}
    paddings = paddings if kind is layers.Conv1D else paddings[:2]
    return kind(
        *filters,
        draw.of(1, 2, 3),
        strides,
        draw.of(*paddings),
        activation=draw.activation(),
        use_bias=draw.of(True, True, False),
        bias_initializer="uniform",
        **settings,
    )(x)


def pool(draw, x):
    names = "MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling"
    name = f"{draw.of(*names)}{len(x.shape) - 2}D"
    if name.startswith("Global"):
        return getattr(layers, name)(keepdims=draw.of(False, True))(x)
    return getattr(layers, name)(2, strides=draw.of(1, 2), padding="same")(x)


def resize(draw, x):
    how = {"interpolation": draw.of("nearest", "bilinear")}
    to = draw.of(3, 6, 7), draw.of(4, 5)
    larger = layers.UpSampling2D(2, **how)
    return draw.of(larger, layers.Resizing(*to, **how), layers.ZeroPadding2D(1))(x)


def squeeze_and_excite(draw, x):
    del draw
    y = layers.Conv2D(2, 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return layers.Multiply()([x, layers.Dense(x.shape[-1], "sigmoid")(y)])


def recurrent(draw, x):
    if x.shape[1] > 6:
        raise ValueError("Unrolled, that is many operators.")
    layer = draw.of(layers.LSTM, layers.GRU, layers.SimpleRNN)(4, return_sequences=draw.of(0, 1))
    return (layers.Bidirectional(layer) if draw.of(0, 0, 1) else layer)(x)


def attention(draw, x):
    others = [y for y in draw.tensors if len(y.shape) == 3]
    return layers.MultiHeadAttention(draw.of(1, 2), 4)(x, draw.of(x, x, *others))


def products(draw, x):
    scores = ops.matmul(x, ops.transpose(draw.like(x), (0, 2, 1)))
    return draw.of(scores, ops.softmax(scores * 0.3), ops.einsum("bij,bkj->bik", x, x))


def each_step(draw, x):
    return layers.TimeDistributed(layers.Dense(5, draw.activation()))(x)


def repeat(draw, x):
    return layers.RepeatVector(draw.of(2, 3))(x)


ANY = (
    *(merge, elementwise, reshape, permute, cut, reduce, join, stack, dense, dense_twice, norm),
    *(broadcast, split, pad, constant),
)
BY_RANK = {
    2: (dense, dense, batch_norm, repeat),
    3: (convolution, convolution, pool, recurrent, attention, products, each_step),
    4: (convolution, convolution, convolution, pool, resize, batch_norm, squeeze_and_excite),
}


def draw_model(seed: int):
    """Returns a model, rows for it, a scheme and a batch size."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    draw = Drawing(seed)
    inputs = [keras.Input(draw.of(*INPUTS)) for _ in range(draw.of(1, 1, 1, 2))]
    draw.tensors += inputs
    wanted = len(inputs) + draw.random.randint(2, 9)
    for _ in range(60):
        try:
            draw.step()
        except (ValueError, TypeError):  # Keras's, of what does not fit together.
            continue
        if len(draw.tensors) >= wanted:
            break
    outputs = [draw.tensors[-1]]
    if len(draw.tensors) > len(inputs) + 1 and draw.of(0, 0, 1):
        outputs.append(draw.of(*draw.tensors[len(inputs) : -1]))
    rng, size = np.random.default_rng(seed), draw.of(1.0, 1.0, 0.1, 5.0)
    rows = [(rng.normal(size=(ROWS, *x.shape[1:])) * size).astype("float32") for x in inputs]
    schemes = ("w8a8",) * 5 + ("w4a8", "w8a16", "w8a16", "w8a8_dynamic", "w8")
    model = keras.Model(*(x if len(x) > 1 else x[0] for x in (inputs, outputs)))
    return model, rows if len(rows) > 1 else rows[0], draw.of(*schemes), draw.of(1, 1, None, 3)
