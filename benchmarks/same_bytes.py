"""Whether the files have the same bytes as at another revision.

python benchmarks/same_bytes.py REVISION [--data FOLDER] [--only ic_resnet8,MobileNetV2]
python benchmarks/same_bytes.py REVISION --small [--only bert,LSTM]

Converts the six models of the main job and ten networks of `keras.applications` with this tree and
with that of REVISION, each in a process of its own, and compares the files byte by byte. Where the
data folder is missing, stand-ins of the same architecture with seeded random weights take the place
of the main job's models. `--small` takes the small models of `tests/end_to_end/` instead: those
after real architectures, and one of every layer of Keras. The exit code is 1 if a file differs.
"""

import collections
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cases
import keras
import networks
import numpy as np
from absl import app, flags
from keras import layers

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = ROOT / "tests" / "end_to_end"

NETWORKS = (
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "ResNet50V2",
)
CALIBRATION_ROWS = 8

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list("only", [], "Names of models; all without.")
flags.DEFINE_list("schemes", ["w8a8", "w4a8"], "Schemes to convert with.")
flags.DEFINE_bool("small", False, "Convert the small models of the tests.")
flags.DEFINE_string("folder", None, "Folder to keep files in; what is there is not made again.")
flags.DEFINE_string("write", None, "Writes the files of this process's tfquant there, no more.")


def _block(x, filters, strides):
    y = layers.Conv2D(filters, 3, strides, "same", use_bias=True)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same")(y))
    if strides > 1:
        x = layers.Conv2D(filters, 1, strides, "same")(x)
    return layers.ReLU()(layers.Add()([x, y]))


def resnet8():
    """CIFAR-10's network of MLPerf Tiny."""
    x = keras.Input((32, 32, 3))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(x)))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = _block(y, filters, strides)
    y = layers.Flatten()(layers.AveragePooling2D(8)(y))
    return keras.Model(x, layers.Dense(10, "softmax")(y))


def ds_cnn():
    """Its network for keywords."""
    x = keras.Input((49, 10, 1))
    y = layers.Conv2D(64, (10, 4), 2, "same")(x)
    for _ in range(4):
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(y))
        y = layers.Conv2D(64, 1, padding="same")(layers.ReLU()(y))
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Flatten()(layers.AveragePooling2D((25, 5))(layers.Dropout(0.4)(y)))
    return keras.Model(x, layers.Dense(12, "softmax")(y))


def autoencoder():
    """Its network for sounds of machines."""
    x = y = keras.Input((640,))
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        y = layers.ReLU()(layers.BatchNormalization()(layers.Dense(units)(y)))
    return keras.Model(x, layers.Dense(640)(y))


def _mobile(side, classes):
    return lambda: keras.applications.MobileNet(
        (side, side, 3), alpha=0.25, weights=None, classes=classes
    )


STAND_INS = {
    "ic_resnet8": resnet8,
    "kws_dscnn": ds_cnn,
    "effnet_lite0": lambda: keras.applications.EfficientNetB0(
        weights=None, input_shape=(224, 224, 3)
    ),
    "mobilenet_v1_025_224": _mobile(224, 1000),
    "vww_mobilenet": _mobile(96, 2),
    "ad_autoencoder": autoencoder,
}


def subject(name):
    """Returns the model of that name and rows to calibrate it with."""
    if name in NETWORKS:
        model = networks.network(name)
        return model, networks.images(model, CALIBRATION_ROWS, seed=1)
    if FLAGS.data:
        case = next(case for case in cases.CASES if case.name == name)
        load = cases.open_loader(FLAGS.data)
        return case.model(load), case.rows(load)[0][:CALIBRATION_ROWS]
    keras.utils.set_random_seed(0)
    model, rng = STAND_INS[name](), np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model, rng.normal(size=(CALIBRATION_ROWS, *model.input_shape[1:])).astype("float32")


def small_subjects():
    """Returns, by name, functions of no arguments that do as `subject` does."""
    sys.path[:0] = [str(SMALL), str(ROOT / "docs")]  # Before `architectures.py` of this folder.
    import architectures
    import test_every_layer as every_layer

    def architecture(name):
        layers.Dense(1)  # Takes the name that an input of one of them has.
        model = architectures.build(name)
        return model, architectures.data_of(model, CALIBRATION_ROWS)

    def layer(kind):
        importlib.reload(every_layer)  # Layers are named as they are made.
        keras.utils.set_random_seed(0)
        every_layer.saved_model.folder = pathlib.Path(tempfile.mkdtemp())
        return every_layer.model_and_data(every_layer.CASES[kind], np.random.default_rng(0))

    found = {name: lambda name=name: architecture(name) for name in architectures.MODELS}
    return found | {kind.__name__: lambda kind=kind: layer(kind) for kind in every_layer.CASES}


def subjects():
    """Returns the chosen models by name, as functions that return one and its rows."""
    names = STAND_INS | dict.fromkeys(NETWORKS)
    found = small_subjects() if FLAGS.small else {n: lambda n=n: subject(n) for n in names}
    return {name: found[name] for name in FLAGS.only or found}


def write(folder):
    """Converts every model with the `tfquant` of this process."""
    import tfquant as tfq

    for name, make in subjects().items():
        for scheme in FLAGS.schemes:
            path = os.path.join(folder, f"{name}_{scheme}.tflite")
            if os.path.exists(path):
                continue
            keras.utils.clear_session()
            model, rows = make()
            q = tfq.calibrate(tfq.quantize_model(model, scheme), rows, progress=False)
            tfq.to_tflite(q, path, verify=False, progress=False)
            print(f"{tfq.__file__}: {name} {scheme}", file=sys.stderr)


def _convert(tree, folder):
    """Runs `write` with the `tfquant` of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    given = [f"--only={','.join(FLAGS.only)}", f"--schemes={','.join(FLAGS.schemes)}"]
    given += [f"--data={FLAGS.data}"] if FLAGS.data else []
    given += ["--small"] if FLAGS.small else []
    command = [sys.executable, __file__, f"--write={folder}", *given]
    subprocess.run(command, check=True, env=environment, cwd=tree)


def compare(revision, folder):
    """Converts with both trees and prints what differs; returns the number of files that do."""
    commit = subprocess.check_output(
        ["git", "rev-parse", "--short", f"{revision}^{{commit}}"], cwd=ROOT, text=True
    ).strip()
    before, now = (os.path.join(folder, name) for name in (commit, "now"))
    for path in (before, now):
        os.makedirs(path, exist_ok=True)
    with tempfile.TemporaryDirectory() as tree:
        subprocess.run(["git", "worktree", "add", "-f", tree, commit], check=True, cwd=ROOT)
        try:
            _convert(tree, before)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], check=True, cwd=ROOT)
    _convert(ROOT, now)
    found = collections.Counter()
    for name in sorted(os.listdir(now)):
        old, new = (pathlib.Path(path, name).read_bytes() for path in (before, now))
        verdict = "same" if old == new else "DIFFERS"
        found[verdict] += 1
        print(f"{verdict:8}{name:40}{len(old):>12,}{len(new):>12,}")
    print(f"{found['same']} files the same as at {commit}, {found['DIFFERS']} differ")
    return found["DIFFERS"]


def main(argv):
    """Compares, or writes for another process that compares."""
    if FLAGS.write:
        write(FLAGS.write)
        return
    if len(argv) != 2:
        raise app.UsageError("A revision of git is expected.")
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(bool(compare(argv[1], FLAGS.folder or temporary)))


if __name__ == "__main__":
    app.run(main)
