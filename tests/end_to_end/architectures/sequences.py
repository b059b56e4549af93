"""Models of sequences: text, speech, signals."""

import keras
import numpy as np
from keras import layers, ops

SIGNAL = (16, 6)


def of(function, shape=SIGNAL, **settings):
    """Returns the model of a function of one input."""

    def make():
        x = keras.Input(shape, **settings)
        return keras.Model(x, function(x))

    return make


def positions(length, width):
    """Embeddings of positions, constant."""
    return np.random.default_rng(0).normal(0, 0.5, (1, length, width)).astype("float32")


def feed_forward(x, activation="gelu"):
    """A transformer's second half."""
    y = layers.Dense(x.shape[-1])(layers.Dense(16, activation=activation)(x))
    return layers.Add()([x, y])


def wavenet(x):
    """van den Oord et al. 2016, arXiv:1609.03499."""
    x, total = layers.Conv1D(8, 1)(x), None
    for rate in (1, 2, 4):
        settings = {"padding": "causal", "dilation_rate": rate}
        filtered = layers.Conv1D(8, 2, activation="tanh", **settings)(x)
        gate = layers.Conv1D(8, 2, activation="sigmoid", **settings)(x)
        y = layers.Conv1D(8, 1)(layers.Multiply()([filtered, gate]))
        x, total = layers.Add()([x, y]), y if total is None else layers.Add()([total, y])
    return layers.Conv1D(5, 1)(layers.ReLU()(total))


def tcn(x):
    """Bai et al. 2018, arXiv:1803.01271."""
    for rate in (1, 2):
        y = layers.Conv1D(6, 3, padding="causal", dilation_rate=rate, activation="relu")(x)
        x = layers.ReLU()(layers.Add()([x, layers.Conv1D(6, 1)(y)]))
    return layers.Dense(5)(x[:, -1])


def ds_cnn(x):
    """Zhang et al. 2017, arXiv:1711.07128, in one dimension."""
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(8, 3, padding="same")(x)))
    x = layers.SeparableConv1D(8, 3, padding="same", activation="relu")(x)
    return layers.Dense(5, activation="softmax")(layers.GlobalAveragePooling1D()(x))


def pooled_first(x):
    """A network that begins with pooling."""
    x = layers.Conv1D(8, 3, activation="relu")(layers.MaxPooling1D(2)(x))
    return layers.Dense(5)(layers.Flatten()(x))


def conformer(x):
    """Gulati et al. 2020, arXiv:2005.08100."""
    x = layers.Dense(8)(x)
    x = feed_forward(layers.LayerNormalization()(x), "silu")
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y)])
    a, b = ops.split(layers.Conv1D(16, 1)(layers.LayerNormalization()(x)), 2, axis=-1)
    y = layers.DepthwiseConv1D(3, padding="same")(a * ops.sigmoid(b))
    y = layers.Conv1D(8, 1)(layers.Activation("silu")(layers.BatchNormalization()(y)))
    return layers.Dense(5)(layers.Add()([x, y]))


def crnn():
    """Shi et al. 2015, arXiv:1507.05717: what CTC reads."""
    x = keras.Input((8, 16, 1))
    y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = layers.MaxPooling2D((2, 2))(y)
    y = layers.Reshape((8, 16))(layers.Permute((2, 1, 3))(y))
    y = layers.Bidirectional(layers.GRU(4, return_sequences=True))(y)
    return keras.Model(x, layers.Dense(5, activation="softmax")(y))


def lstm(x):
    """A classifier of sequences."""
    return layers.Dense(5)(layers.LSTM(6)(layers.LSTM(6, return_sequences=True)(x)))


def whisper():
    """Radford et al. 2022, arXiv:2212.04356: an encoder of sound, a decoder of text."""
    sound, ids = keras.Input(SIGNAL, name="sound"), keras.Input((6,), dtype="int32", name="ids")
    x = layers.Conv1D(8, 3, padding="same", activation="gelu")(sound)
    x = layers.Conv1D(8, 3, 2, padding="same", activation="gelu")(x) + positions(8, 8)
    y = layers.LayerNormalization()(x)
    x = feed_forward(layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y)]))
    x = layers.LayerNormalization()(x)
    t = layers.Embedding(16, 8)(ids) + positions(6, 8)
    y = layers.LayerNormalization()(t)
    t = layers.Add()([t, layers.MultiHeadAttention(2, 4)(y, y, use_causal_mask=True)])
    t = layers.Add()([t, layers.MultiHeadAttention(2, 4)(layers.LayerNormalization()(t), x)])
    return keras.Model([sound, ids], layers.Dense(16)(layers.LayerNormalization()(t)))


def bert():
    """Devlin et al. 2018, arXiv:1810.04805, its mask given."""
    ids, mask = keras.Input((8,), dtype="int32", name="ids"), keras.Input((8,), name="mask")
    x = layers.LayerNormalization()(layers.Embedding(16, 8)(ids) + positions(8, 8))
    hidden = (1.0 - mask[:, None, None, :]) * -1e9
    q, k, v = (layers.Reshape((8, 2, 4))(layers.Dense(8)(x)) for _ in range(3))
    scores = ops.matmul(ops.transpose(q, (0, 2, 1, 3)), ops.transpose(k, (0, 2, 3, 1))) / 2.0
    y = ops.matmul(ops.softmax(scores + hidden), ops.transpose(v, (0, 2, 1, 3)))
    y = layers.Dense(8)(layers.Reshape((8, 8))(ops.transpose(y, (0, 2, 1, 3))))
    x = feed_forward(layers.LayerNormalization()(layers.Add()([x, y])))
    return keras.Model([ids, mask], layers.Dense(3)(x[:, 0]))


def gpt(ids):
    """Radford et al. 2019, its causal mask made by hand."""
    x = layers.Embedding(16, 8)(ids) + positions(8, 8)
    y = layers.LayerNormalization()(x)
    q, k, v = (layers.Dense(8)(y) for _ in range(3))
    shown = np.tril(np.ones((1, 8, 8), bool))
    scores = ops.where(shown, ops.matmul(q, ops.transpose(k, (0, 2, 1))), -1e9)
    x = layers.Add()([x, layers.Dense(8)(ops.matmul(ops.softmax(scores), v))])
    return layers.Dense(16)(layers.LayerNormalization()(feed_forward(x)))


def t5(ids):
    """Raffel et al. 2019, arXiv:1910.10683: biases of relative positions, root mean squares."""
    x = layers.Embedding(16, 8)(ids)
    y = layers.RMSNormalization()(x)
    q, k, v = (layers.Dense(8, use_bias=False)(y) for _ in range(3))
    scores = ops.matmul(q, ops.transpose(k, (0, 2, 1))) + positions(8, 8)
    x = layers.Add()([x, ops.matmul(ops.softmax(scores), v)])
    y = layers.RMSNormalization()(x)
    gated = layers.Dense(16, activation="gelu")(y) * layers.Dense(16)(y)
    return layers.RMSNormalization()(layers.Add()([x, layers.Dense(8)(gated)]))


def llama(ids):
    """Touvron et al. 2023, arXiv:2302.13971: gated units, queries in groups."""
    x = layers.Embedding(16, 8)(ids)
    y = layers.RMSNormalization()(x)
    x = layers.Add()([x, layers.GroupQueryAttention(4, 4, 2)(y, y, use_causal_mask=True)])
    y = layers.RMSNormalization()(x)
    gated = layers.Dense(16, activation="silu")(y) * layers.Dense(16)(y)
    return layers.Dense(16)(layers.Add()([x, layers.Dense(8)(gated)]))


def fnet(ids):
    """Lee-Thorp et al. 2021, arXiv:2105.03824: the Fourier transform as products of matrices."""
    x = layers.Embedding(16, 8)(ids)
    waves = np.outer(np.arange(8), np.arange(8)) * 2 * np.pi / 8
    cosine, sine = np.cos(waves).astype("float32"), np.sin(waves).astype("float32")
    mixed = [
        layers.Permute((2, 1))(ops.matmul(layers.Permute((2, 1))(ops.matmul(x, w)), w))
        for w in (cosine, sine)
    ]
    x = layers.LayerNormalization()(layers.Add()([x, mixed[0] - mixed[1]]))
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(feed_forward(x)))


def text_cnn(ids):
    """Kim 2014, arXiv:1408.5882."""
    x = layers.Embedding(16, 8)(ids)
    found = [layers.Conv1D(4, n, activation="relu")(x) for n in (2, 3)]
    return layers.Dense(3)(layers.Concatenate()([layers.GlobalMaxPooling1D()(y) for y in found]))


TOKENS = {"shape": (8,), "dtype": "int32"}
MODELS = {
    "wavenet": of(wavenet),
    "tcn": of(tcn),
    "ds_cnn": of(ds_cnn),
    "pooled_first": of(pooled_first),
    "conformer": of(conformer),
    "crnn": crnn,
    "lstm": of(lstm),
    "whisper": whisper,
    "bert": bert,
    "gpt": of(gpt, **TOKENS),
    "t5": of(t5, **TOKENS),
    "llama": of(llama, **TOKENS),
    "fnet": of(fnet, **TOKENS),
    "text_cnn": of(text_cnn, **TOKENS),
}
