"""Models of tables and graphs."""

import keras
from keras import layers, ops

NODES = (6, 8)


def two_tower():
    """A retrieval model: Covington et al. 2016."""
    user, item = (keras.Input((1,), dtype="int32", name=name) for name in ("user", "item"))
    sides = []
    for ids in (user, item):
        x = layers.Flatten()(layers.Embedding(16, 8)(ids))
        sides.append(layers.Dense(8)(layers.Dense(16, activation="relu")(x)))
    return keras.Model([user, item], layers.Dot(1)(sides))


def dlrm():
    """Naumov et al. 2019, arXiv:1906.00091."""
    numbers, ids = keras.Input((4,), name="numbers"), keras.Input((3,), dtype="int32", name="ids")
    x = layers.Dense(8, activation="relu")(numbers)
    found = [layers.Embedding(16, 8)(ids[:, i]) for i in range(3)]
    vectors = ops.stack([x, *found], axis=1)
    pairs = layers.Flatten()(ops.matmul(vectors, ops.transpose(vectors, (0, 2, 1))))
    y = layers.Dense(8, activation="relu")(layers.Concatenate()([x, pairs]))
    return keras.Model([numbers, ids], layers.Dense(1, activation="sigmoid")(y))


def wide_and_deep():
    """Cheng et al. 2016, arXiv:1606.07792."""
    wide, deep = keras.Input((6,), name="wide"), keras.Input((4,), name="deep")
    y = layers.Dense(8, activation="relu")(layers.Dense(16, activation="relu")(deep))
    return keras.Model([wide, deep], layers.Dense(1)(layers.Concatenate()([wide, y])))


def anomaly():
    """The autoencoder of MLPerf Tiny."""
    x = y = keras.Input((16,))
    for units in (16, 4, 16):
        y = layers.ReLU()(layers.BatchNormalization()(layers.Dense(units)(y)))
    return keras.Model(x, layers.Dense(16)(y))


def gcn():
    """Kipf and Welling 2016, arXiv:1609.02907."""
    nodes, adjacency = keras.Input(NODES, name="nodes"), keras.Input((6, 6), name="adjacency")
    x = ops.relu(ops.matmul(adjacency, layers.Dense(8)(nodes)))
    return keras.Model([nodes, adjacency], ops.matmul(adjacency, layers.Dense(3)(x)))


def gat():
    """Velickovic et al. 2017, arXiv:1710.10903."""
    nodes, adjacency = keras.Input(NODES, name="nodes"), keras.Input((6, 6), name="adjacency")
    h = layers.Dense(8)(nodes)
    scores = layers.Dense(1)(h) + ops.transpose(layers.Dense(1)(h), (0, 2, 1))
    scores = ops.leaky_relu(scores, 0.2) + (1.0 - adjacency) * -1e9
    y = ops.matmul(ops.softmax(scores), h)
    return keras.Model([nodes, adjacency], layers.Dense(3)(ops.relu(y)))


MODELS = {
    "two_tower": two_tower,
    "dlrm": dlrm,
    "wide_and_deep": wide_and_deep,
    "anomaly": anomaly,
    "gcn": gcn,
    "gat": gat,
}
