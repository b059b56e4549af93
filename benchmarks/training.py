"""Quantization-aware training: accuracy, step time and memory, beside float and tfmot.

python benchmarks/training.py --data FOLDER [--parts resnet8|fashion|step|memory] [--tfmot PYTHON]

`--tfmot` names the Python of an environment with tensorflow, tf_keras and
tensorflow-model-optimization; without it tfmot is left out. What each column means is in
benchmarks/README.md.
"""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import clock
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from cases import open_loader
from device import Runner, stock_int8
from rich.console import Console
from rich.table import Table

import tfquant as tfq


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a scheme is trained.

    Attributes:
        epochs: Epochs.
        learning_rate: First learning rate of a cosine.
        bar: Points that it may lose against float.
        teacher: Share of the float model's answers in the loss, at temperature 4.
        freeze: Epoch from which batch norms stand still; `None` for never.
        jit_compile: Whether XLA compiles the step, as a long training is worth.
    """

    epochs: int
    learning_rate: float
    bar: float
    teacher: float = 0.0
    freeze: int | None = None
    jit_compile: bool = False


RECIPES = {
    "w8a8": Recipe(2, 1e-5, 0.002, teacher=1.0, freeze=0),
    "w8a8 alone": Recipe(2, 1e-5, 0.002),
    "w4a8": Recipe(5, 3e-4, 0.007),
    "w2a8": Recipe(48, 6e-4, 0.05, teacher=0.9, freeze=36, jit_compile=True),
}


FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_multi_enum(
    "parts",
    ["resnet8", "fashion", "step"],
    ["resnet8", "fashion", "step", "memory"],
    "What to run.",
)
flags.DEFINE_list("schemes", list(RECIPES), "Recipes of the part resnet8.")
flags.DEFINE_integer("seeds", 3, "Seeds of each training.")
flags.DEFINE_string("tfmot", None, "Python of an environment with tfmot.")

BATCH_SIZE = 32
ROUNDS = 15
STEPS_PER_ROUND = 6
RIVAL = os.path.join(os.path.dirname(__file__), "tfmot_rival.py")

console = Console()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"No arguments are expected. Received: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    parts = {"resnet8": resnet8, "fashion": fashion, "step": steps, "memory": memory}
    for part in FLAGS.parts:
        parts[part]()


# ResNet8 on CIFAR-10.


def resnet8():
    """Trains the pretrained ResNet8 on 6000 images and scores 2000 others."""
    load = open_loader(FLAGS.data)
    (x, y), (test_x, test_y) = load.cifar10("train"), load.cifar10("test")
    x, test_x = x.astype("float32"), test_x.astype("float32")
    model = load.model("mlperf_tiny", "ic_resnet8.keras")
    score = lambda m: float((m.predict(test_x, verbose=0).argmax(-1) == test_y).mean())  # noqa: E731
    float_score, stock = score(model), stock_int8(model, x[:200])
    table = Table("scheme", "float", "PTQ", "QAT (seeds)", "mean", "bar", "tfmot", "file")
    for scheme in FLAGS.schemes:
        recipe, found = RECIPES[scheme], []
        for seed in range(FLAGS.seeds):
            keras.utils.set_random_seed(seed)
            q = tfq.quantize_model(model, scheme.split()[0])
            tfq.calibrate(q, x[:200], progress=False)
            before = score(q)
            train(q, model, cifar_batches(x, y, seed), recipe, len(x))
            found.append(score(q))
            console.print(f"{scheme} seed {seed}: PTQ {before:.4f}, QAT {found[-1]:.4f}")
        file = check_file(q, test_x, test_y, stock)
        rival = tfmot_scores(recipe, model) if scheme == "w8a8 alone" else ""
        bar = max(float_score - recipe.bar, before)
        mean = float(np.mean(found))
        met = "met" if mean >= bar - 1e-9 else "MISSED"
        row = [scheme, float_score, before, " ".join(f"{s:.4f}" for s in found), mean]
        row = [f"{v:.4f}" if isinstance(v, float) else v for v in row]
        table.add_row(*row, f"{bar:.4f} {met}", rival, file)
    console.print(table)


def cifar_batches(x, y, seed):
    """Returns batches of flipped and shifted images, shuffled by `seed`."""

    def vary(image, label):
        image = tf.pad(tf.image.random_flip_left_right(image), [[4, 4], [4, 4], [0, 0]])
        return tf.image.random_crop(image, [32, 32, 3]), label

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    return data.map(vary).batch(BATCH_SIZE, drop_remainder=True).prefetch(2)


def train(model, teacher, data, recipe, rows):
    """Compiles and fits by a recipe."""
    callbacks = [] if recipe.freeze is None else [tfq.FreezeBatchNorm(recipe.freeze)]
    if recipe.teacher:
        model = tfq.distill(model, teacher, temperature=4.0, weight=recipe.teacher)
    steps = rows // BATCH_SIZE * recipe.epochs
    rate = keras.optimizers.schedules.CosineDecay(recipe.learning_rate, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        jit_compile=recipe.jit_compile,
    )
    model.fit(data, epochs=recipe.epochs, verbose=0, callbacks=callbacks)


def check_file(q, rows, labels, stock=None):
    """Converts a trained model; returns size, parity, score and latency of the file in words.

    Args:
        q: The trained model.
        rows: Inputs to score.
        labels: Their classes.
        stock: The file of stock int8 quantization that latency is compared with.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        report = tfq.to_tflite(q, path, progress=False)
        content = pathlib.Path(path).read_bytes()
    scores = Runner(content)(rows)[0]
    right = float((scores.argmax(-1) == labels).mean())
    apart = sum(layer.parity.differing for layer in report.layers if layer.parity is not None)
    words = (
        f"{len(content):,} bytes, {right:.4f} in LiteRT, {apart} apart op by op, "
        f"{report.end_to_end.differing} end to end"
    )
    if stock is None:
        return words
    answers = scores, Runner(stock)(rows[: clock.CHECKED_ROWS])[0]
    return f"{words}, latency by stock's {clock.latency(content, stock, rows, answers, 1)}"


def tfmot_scores(recipe, model):
    """Trains the same model under tfmot and returns its scores in words."""
    if FLAGS.tfmot is None:
        return "not run"
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "weights.npz")
        np.savez(weights, **{f"{i:03}": w for i, w in enumerate(model.get_weights())})
        settings = {**dataclasses.asdict(recipe), "data": FLAGS.data, "weights": weights}
        settings = {**settings, "seeds": FLAGS.seeds, "batch_size": BATCH_SIZE}
        found = subprocess.run(
            [FLAGS.tfmot, RIVAL, "train", json.dumps(settings)], capture_output=True, text=True
        )
    if found.returncode:
        raise RuntimeError(f"tfmot failed:\n{found.stderr[-3000:]}")
    scores = json.loads(found.stdout.splitlines()[-1])
    return f"{np.mean(scores):.4f} ({' '.join(f'{s:.4f}' for s in scores)})"


# Fashion-MNIST from scratch.


def cnn():
    """Returns a small network of convolutions."""
    layers = keras.layers
    inputs = keras.Input((28, 28, 1))
    x = inputs
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name="fashion_cnn")


def lstm():
    """Returns a small recurrent network that reads an image row by row."""
    inputs = keras.Input((28, 28))
    x = keras.layers.LSTM(32)(inputs)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="fashion_lstm")


def fashion():
    """Trains in float, and with a float warm-up then 8 bits, from scratch, for as many epochs."""
    load = open_loader(FLAGS.data)
    (x, y), (test_x, test_y) = load.fashion_mnist()
    x, test_x = x.astype("float32") / 255, test_x.astype("float32") / 255
    table = Table("model", "float (seeds)", "w8a8 (seeds)", "mean difference", "bar", "file")
    for make, epochs, warm in ((cnn, 8, 5), (lstm, 10, 7)):
        shape = (-1, 28, 28, 1) if make is cnn else (-1, 28, 28)
        rows, test_rows = x.reshape(shape), test_x.reshape(shape)
        scores = {"float": [], "w8a8": []}
        for seed in range(FLAGS.seeds):
            for kind, found in scores.items():
                keras.utils.set_random_seed(seed)
                model, callbacks = make(), []
                if kind == "w8a8":
                    model = tfq.quantize_model(model)
                    tfq.calibrate(model, rows[:200], progress=False)
                    callbacks = [tfq.FloatWarmup(warm)]
                steps = len(rows) // BATCH_SIZE * epochs
                rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
                model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
                model.fit(rows, y, BATCH_SIZE, epochs=epochs, verbose=0, callbacks=callbacks)
                answers = model.predict(test_rows, verbose=0).argmax(-1)
                found.append(float((answers == test_y).mean()))
                console.print(f"{make.__name__} {kind} seed {seed}: {found[-1]:.4f}")
        words = [" ".join(f"{s:.4f}" for s in found) for found in scores.values()]
        difference = float(np.mean(scores["w8a8"]) - np.mean(scores["float"]))
        met = "met" if difference >= -0.003 else "MISSED"
        file = check_file(model, test_rows, test_y)
        table.add_row(make.__name__, *words, f"{difference:+.4f}", f"-0.0030 {met}", file)
    console.print(table)


# A training step.


def networks():
    """Returns functions that make the two networks of the step, and the shape of their input."""
    mobilenet = lambda: keras.applications.MobileNetV2(  # noqa: E731
        (96, 96, 3), alpha=0.35, weights=None, classes=10
    )
    return {"resnet8": (make_resnet8, (32, 32, 3)), "mobilenet_v2_0.35": (mobilenet, (96, 96, 3))}


def make_resnet8():
    """Returns an untrained ResNet8 as MLPerf Tiny has it."""
    layers = keras.layers
    convolve = lambda x, n, k, s: layers.Conv2D(n, k, s, padding="same")(x)  # noqa: E731
    normalize = layers.BatchNormalization
    inputs = keras.Input((32, 32, 3))
    x = layers.Activation("relu")(normalize()(convolve(inputs, 16, 3, 1)))
    for filters in (16, 32, 64):
        stride = 1 if filters == 16 else 2
        y = layers.Activation("relu")(normalize()(convolve(x, filters, 3, stride)))
        y = normalize()(convolve(y, filters, 3, 1))
        x = x if stride == 1 else convolve(x, filters, 1, stride)
        x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name="resnet8")


def compiled(model, jit_compile):
    """Compiles a model for the step."""
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=jit_compile)
    return model


def quantized(model, rows):
    """Returns the calibrated w8a8 model of `model`."""
    q = tfq.quantize_model(model)
    return tfq.calibrate(q, rows, bias_correction=False, progress=False)


def steps():
    """Compares the time of a training step with float, in turns, and with tfmot's."""
    table = Table("network", "compiled", "ours by float", "ours by tfmot", "tfmot by its float")
    for name, (make, shape) in networks().items():
        rng = np.random.default_rng(0)
        rows = rng.uniform(-1, 1, (BATCH_SIZE, *shape)).astype("float32")
        labels = rng.integers(0, 10, BATCH_SIZE)
        for jit_compile in ("auto", True):
            plain = compiled(make(), jit_compile)
            ours = compiled(quantized(make(), rows), jit_compile)
            contestants = [in_process(plain, rows, labels), in_process(ours, rows, labels)]
            rival = jit_compile == "auto" and FLAGS.tfmot is not None
            if rival:
                contestants += [tfmot_step(name, kind) for kind in ("float", "quantized")]
            seconds = in_turns(contestants)
            columns = [ratio(seconds[1], seconds[0])]
            columns += (
                [ratio(seconds[1], seconds[3]), ratio(seconds[3], seconds[2])]
                if rival
                else ["", ""]
            )
            table.add_row(name, "XLA" if jit_compile is True else "default", *columns)
            console.print(table)


def in_process(model, rows, labels):
    """Returns a function that runs some steps of `model` and returns the seconds of the fastest."""
    rows, labels = tf.constant(rows), tf.constant(labels)

    def run():
        return min(
            _seconds(lambda: model.train_on_batch(rows, labels)) for _ in range(STEPS_PER_ROUND)
        )

    return run


def tfmot_step(name, kind):
    """Returns a function that has tfmot's process run some steps."""
    settings = json.dumps({"network": name, "kind": kind, "batch_size": BATCH_SIZE})
    process = subprocess.Popen(
        [FLAGS.tfmot, RIVAL, "step", settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def run():
        process.stdin.write(f"{STEPS_PER_ROUND}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return run


def in_turns(contestants):
    """Returns the seconds of a step, one row for each contestant, one column for each round."""
    for contestant in contestants:
        contestant()
    rounds = []
    for number in range(ROUNDS):
        order = list(enumerate(contestants))
        found = dict((i, run()) for i, run in (order if number % 2 else order[::-1]))
        rounds.append([found[i] for i in range(len(contestants))])
    return np.array(rounds).T


def ratio(ours, theirs):
    """Returns median (minimum to maximum) of the rounds' ratios, in words."""
    ratios = ours / theirs
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# Memory.


def memory():
    """Compares the peak memory of a step, each in a fresh process."""
    table = Table("network", "float MiB", "ours MiB", "ratio", "bar")
    for name in networks():
        peaks = {}
        for kind in ("float", "quantized"):
            command = [sys.executable, __file__, "--only_peak", f"{name}:{kind}"]
            found = subprocess.run(command, capture_output=True, text=True)
            if found.returncode:
                raise RuntimeError(found.stderr[-3000:])
            peaks[kind] = float(found.stdout.splitlines()[-1])
        value = peaks["quantized"] / peaks["float"]
        met = "met" if value <= 1.5 else "MISSED"
        table.add_row(name, *(f"{p:.0f}" for p in peaks.values()), f"{value:.2f}", f"1.50 {met}")
    console.print(table)


flags.DEFINE_string("only_peak", None, "Used by the part memory: NETWORK:KIND.")


def peak(name, kind):
    """Prints by how many MiB three steps raise the peak of a fresh process."""
    make, shape = networks()[name]
    rows = np.zeros((BATCH_SIZE, *shape), "float32")
    model = make() if kind == "float" else quantized(make(), rows + 0.5)
    compiled(model, "auto")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        model.train_on_batch(rows, np.zeros(BATCH_SIZE, int))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    app.run(lambda argv: peak(*FLAGS.only_peak.split(":")) if FLAGS.only_peak else main(argv))
