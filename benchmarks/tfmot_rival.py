"""tfmot's quantization-aware training of the networks of training.py, in its own environment.

    python benchmarks/tfmot_rival.py train SETTINGS   prints the scores of each seed as JSON
    python benchmarks/tfmot_rival.py step SETTINGS    reads numbers of steps, prints seconds a step

Needs tensorflow, tf_keras and tensorflow-model-optimization.
"""

import json
import os
import sys
import time

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from cases import open_loader


def make_resnet8():
    """Returns the network of training.py in tf_keras, layer by layer in the same order."""
    layers = keras.layers
    convolve = lambda x, n, k, s: layers.Conv2D(n, k, s, padding="same")(x)  # noqa: E731
    normalize = layers.BatchNormalization
    inputs = keras.Input((32, 32, 3))
    x = layers.Activation("relu")(normalize()(convolve(inputs, 16, 3, 1)))
    for filters in (16, 32, 64):
        stride = 1 if filters == 16 else 2
        y = layers.Activation("relu")(normalize()(convolve(x, filters, 3, stride)))
        y = convolve(y, filters, 3, 1)
        x = x if stride == 1 else convolve(x, filters, 1, stride)
        x = layers.Activation("relu")(layers.Add()([x, normalize()(y)]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def train(settings):
    """Trains from the given weights under each seed and returns the scores."""
    load = open_loader(settings["data"])
    (x, y), (test_x, test_y) = load.cifar10("train"), load.cifar10("test")
    x, test_x = x.astype("float32"), test_x.astype("float32")
    stored = np.load(settings["weights"])
    scores = []
    for seed in range(settings["seeds"]):
        keras.utils.set_random_seed(seed)
        model = make_resnet8()
        model.set_weights([stored[key] for key in sorted(stored.files)])
        q = tfmot.quantization.keras.quantize_model(model)

        def vary(image, label):
            image = tf.pad(tf.image.random_flip_left_right(image), [[4, 4], [4, 4], [0, 0]])
            return tf.image.random_crop(image, [32, 32, 3]), label

        data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
        data = data.map(vary).batch(settings["batch_size"], drop_remainder=True).prefetch(2)
        steps = len(x) // settings["batch_size"] * settings["epochs"]
        rate = keras.optimizers.schedules.CosineDecay(settings["learning_rate"], steps)
        q.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
        q.fit(data, epochs=settings["epochs"], verbose=0)
        answers = q.predict(test_x, verbose=0).argmax(-1)
        scores.append(float((answers == test_y).mean()))
    return scores


def step(settings):
    """Answers each line, a number of steps, with the seconds of the fastest."""
    if settings["network"] == "resnet8":
        model, shape = make_resnet8(), (32, 32, 3)
    else:
        shape = (96, 96, 3)
        model = keras.applications.MobileNetV2(shape, alpha=0.35, weights=None, classes=10)
    if settings["kind"] == "quantized":
        model = tfmot.quantization.keras.quantize_model(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    rows = tf.constant(rng.uniform(-1, 1, (settings["batch_size"], *shape)).astype("float32"))
    labels = tf.constant(rng.integers(0, 10, settings["batch_size"]))
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            model.train_on_batch(rows, labels)
            seconds.append(time.perf_counter() - start)
        print(min(seconds), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("train", "step"):
        sys.exit("usage: tfmot_rival.py train|step SETTINGS")
    if sys.argv[1] == "train":
        print(json.dumps(train(json.loads(sys.argv[2]))))
    else:
        step(json.loads(sys.argv[2]))
