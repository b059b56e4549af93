"""The models of the benchmark, their rows, and how rows are split between calibration and score.

Everything is opened by the `load.py` of the data folder, which is no part of tfquant.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Callable

import numpy as np

CALIBRATION_ROWS = 100
RANDOM_ROWS = 200


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and what is known about it.

    Attributes:
        name: Name of the model.
        folder: Folder of the data folder that holds it.
        rows: Function from `load` to `(calibration, inputs, labels)`; labels are `None` where there
            are no data and the inputs are random.
    """

    name: str
    folder: str
    rows: Callable

    @property
    def has_data(self) -> bool:
        """Whether it can be scored."""
        return self.rows not in (_random_images, _random_spectra)

    def model(self, load):
        """Returns the float Keras model."""
        return load.model(self.folder, f"{self.name}.keras")

    def reference_bytes(self, load) -> int | None:
        """Returns the size of MLPerf's own int8 file, `None` where there is none."""
        path = load.path(self.folder, f"{self.name}_ref_int8.tflite")
        return os.path.getsize(path) if os.path.exists(path) else None


def open_loader(folder: str):
    """Returns the module `load.py` of the data folder.

    Raises:
        FileNotFoundError: If it is not there.
    """
    path = os.path.join(folder, "load.py")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"A folder with load.py is expected. Received: '{folder}'.")
    spec = importlib.util.spec_from_file_location("load", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cifar10(load):
    calibration, _ = load.cifar10("train")
    images, labels = load.cifar10("test")
    return calibration[:200].astype("float32"), images.astype("float32"), labels


def _keywords(load):
    return split(*load.kws())


def _imagenet(name):
    def rows(load):
        images, labels = load.imagenet500()
        return split(load.IMAGENET_PREPROCESS[name](images), labels)

    return rows


def split(inputs, labels):
    """Takes calibration rows at even strides, so that they see all classes; scores the others."""
    chosen = np.zeros(len(inputs), bool)
    chosen[:: len(inputs) // CALIBRATION_ROWS] = True
    return inputs[chosen][:CALIBRATION_ROWS], inputs[~chosen], labels[~chosen]


def _random_images(load, calibration=CALIBRATION_ROWS):
    """Smooth images in 0..1, the range that MLPerf's own file takes."""
    del load
    import tensorflow as tf

    generator = np.random.default_rng(0)
    coarse = generator.uniform(0, 1, (calibration + RANDOM_ROWS, 6, 6, 3))
    images = tf.image.resize(coarse.astype("float32"), (96, 96)).numpy()
    return images[:calibration], images[calibration:], None


def _random_spectra(load, calibration=CALIBRATION_ROWS):
    """Five frames of 128 bands around one level, within the -85..15 dB of MLPerf's own file."""
    del load
    generator = np.random.default_rng(0)
    count = calibration + RANDOM_ROWS
    level = generator.uniform(-45, -15, (count, 1, 1)) + np.linspace(8, -8, 128)
    frames = level + generator.normal(0, 4, (count, 5, 128))
    rows = frames.reshape(count, 640).astype("float32")
    return rows[:calibration], rows[calibration:], None


CASES = (
    Case("ic_resnet8", "mlperf_tiny", _cifar10),
    Case("kws_dscnn", "mlperf_tiny", _keywords),
    Case("effnet_lite0", "imagenet", _imagenet("effnet_lite0")),
    Case("mobilenet_v1_025_224", "imagenet", _imagenet("mobilenet_v1_025_224")),
    Case("vww_mobilenet", "mlperf_tiny", _random_images),
    Case("ad_autoencoder", "mlperf_tiny", _random_spectra),
)

RECURRENT = (
    Case("kws_lstm_s", "kws_rnn", lambda load: split(*load.kws_rnn())),
    Case("kws_gru_s", "kws_rnn", lambda load: split(*load.kws_rnn25())),
)
