"""What `tfq.finetune` wins back with its defaults, on models and rows that are real.

python benchmarks/finetune.py --data FOLDER [--models ic_resnet8] [--schemes w4a8,w2a8] [--seeds 3]

Rows that score are used for nothing else. What each column means is in benchmarks/README.md.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from cases import open_loader
from rich.console import Console
from rich.table import Table

import tfquant as tfq

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list("models", ["ic_resnet8", "kws_dscnn"], "Which models.")
flags.DEFINE_list("schemes", ["w4a8", "w4a4", "w3a3", "w2a8"], "Schemes of ic_resnet8.")
flags.DEFINE_integer("seeds", 3, "Seeds of each training.")
flags.DEFINE_integer("first_seed", 0, "The first of them.")

console = Console()

# The schemes that have no name.
SCHEMES = {
    "w4a4": tfq.Scheme("w4a4", 4, 4),
    "w3a3": tfq.Scheme("w3a3", 3, 3),
}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"No arguments are expected. Received: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    load = open_loader(FLAGS.data)
    table = Table("model", "scheme", "float", "calibrated", "trained", "mean", "validation")
    for name in FLAGS.models:
        make = {"ic_resnet8": resnet8, "kws_dscnn": dscnn}[name]
        for scheme in FLAGS.schemes if name == "ic_resnet8" else ["w4a8"]:
            table.add_row(name, scheme, *scores(make, load, scheme))
    console.print(table)


def resnet8(load, seed):
    """Returns the model, images to train, to judge by and to score, and a dataset of the first."""
    (x, y), test = load.cifar10("train"), load.cifar10("test")
    x, model = x.astype("float32"), load.model("mlperf_tiny", "ic_resnet8.keras")
    train, judge = (x[600:], y[600:]), (x[:600], y[:600])

    def vary(image, label):
        image = tf.pad(tf.image.random_flip_left_right(image), [[4, 4], [4, 4], [0, 0]])
        return tf.image.random_crop(image, [32, 32, 3]), label

    data = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]), seed=seed)
    data = data.map(vary).batch(32).prefetch(2)
    return model, x[:200], data, judge, (test[0].astype("float32"), test[1])


def dscnn(load, seed):
    """Returns the model, clips to calibrate, to train on, to judge by and to score."""
    x, y = load.kws()
    model = load.model("mlperf_tiny", "kws_dscnn.keras")
    return model, x[:100], (x[:200], y[:200]), None, (x[200:], y[200:])


def scores(make, load, scheme):
    """Trains once for each seed; returns the columns of the table."""
    found = []
    for seed in range(FLAGS.first_seed, FLAGS.first_seed + FLAGS.seeds):
        keras.utils.set_random_seed(seed)
        model, calibration, data, validation, (x, y) = make(load, seed)
        score = lambda m: float((m.predict(x, verbose=0).argmax(-1) == y).mean())  # noqa: B023, E731
        q = tfq.quantize_model(model, SCHEMES.get(scheme, scheme))
        tfq.calibrate(q, calibration, progress=False)
        before = score(q)
        tfq.finetune(q, data, validation=validation, verbose=0)
        found.append(score(q))
        console.print(f"{scheme} seed {seed}: {before:.4f} to {found[-1]:.4f}; {q.finetuning}")
    figures = f"{score(model):.4f}", f"{before:.4f}", " ".join(f"{s:.4f}" for s in found)
    return *figures, f"{np.mean(found):.4f}", str(q.finetuning)


if __name__ == "__main__":
    app.run(main)
