"""`tfquant demo`: the whole way on real handwritten digits, in under a minute."""

import dataclasses
import json

import keras
import numpy as np
from rich.console import Group
from rich.progress import Progress
from rich.text import Text

import tfquant as tfq
from tfquant.litert.flatbuffer import File
from tfquant.litert.interpreter import run as run_file
from tfquant.litert.interpreter import to_file_inputs
from tfquant.report import ConversionReport

BATCH_SIZE = 32
TRAINING_ROWS = 1297  # The other 500 of 1797 are held out.


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        report: `ConversionReport` of the file.
        rows: Number of held-out rows.
        float_accuracy: Share of them that the float model gets right.
        quantized_accuracy: The same for the quantized Keras model.
        file_accuracy: The same for the `.tflite` file, run by LiteRT.
    """

    report: ConversionReport
    rows: int
    float_accuracy: float
    quantized_accuracy: float
    file_accuracy: float

    def __rich__(self):
        return Group(self.report, Text(self._accuracies()))

    def __str__(self) -> str:
        return f"{str(self.report).rstrip()}\n{self._accuracies()}"

    def to_json(self) -> str:
        """Returns the report and the accuracies as JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps({**fields, "report": self.report.to_dict()}, indent=2)

    def _accuracies(self):
        return (
            f"accuracy on {self.rows} held-out digits: {self.float_accuracy:.4f} float, "
            f"{self.quantized_accuracy:.4f} quantized Keras, {self.file_accuracy:.4f} .tflite"
        )


def run(path="digits.tflite", *, scheme="w8a8", epochs: int = 8, progress=True) -> DemoResult:
    """Trains a small network with batch norm on scikit-learn's digits and converts it.

    Args:
        path: The `.tflite` file to write.
        scheme: Name of a scheme, or a `Scheme`.
        epochs: Passes over the training rows.
        progress: Whether to show progress bars.

    Returns:
        `DemoResult`; print it.

    Raises:
        ImportError: If scikit-learn, which brings the digits, is not installed.
    """
    (x_train, y_train), (x_test, y_test) = digits()
    keras.utils.set_random_seed(1)
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy")
    train(model, x_train, y_train, epochs, progress)
    quantized = tfq.quantize_model(model, scheme)
    tfq.calibrate(quantized, x_train[:200], progress=progress)
    report = tfq.to_tflite(quantized, path, progress=progress)
    return DemoResult(
        report=report,
        rows=len(x_test),
        float_accuracy=_accuracy(model.predict(x_test, verbose=0), y_test),
        quantized_accuracy=_accuracy(quantized.predict(x_test, verbose=0), y_test),
        file_accuracy=_accuracy(_run_file(path, x_test), y_test),
    )


def digits():
    """Returns `(images, labels)` for training and held out: 8x8 pixels between 0 and 1.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'The demo takes its handwritten digits from scikit-learn: pip install "tfquant[demo]".'
        ) from error
    data = load_digits()
    images = (data.images[..., None] / 16.0).astype("float32")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:TRAINING_ROWS], order[TRAINING_ROWS:]
    return (images[train], data.target[train]), (images[test], data.target[test])


def network() -> keras.Model:
    """Returns a convolutional network of 24,000 parameters for 8x8 images."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = inputs
    for block, filters in enumerate((16, 32)):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{block}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm{block}")(x)
        x = keras.layers.ReLU(name=f"relu{block}")(x)
        x = keras.layers.MaxPooling2D(name=f"pool{block}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(64, activation="relu", name="hidden")(x)
    outputs = keras.layers.Dense(10, activation="softmax", name="digit")(x)
    return keras.Model(inputs, outputs, name="digits")


def train(model, x, y, epochs, progress) -> None:
    """Fits `model` under a progress bar that leaves no lines behind."""
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("Training", total=epochs)
        advance = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: bar.advance(task))
        model.fit(x, y, BATCH_SIZE, epochs, verbose=0, callbacks=[advance])


def _run_file(path, images):
    with open(path, "rb") as file:
        content = file.read()
    (scores,) = run_file(content, to_file_inputs(File(content), [images]))
    return scores


def _accuracy(scores, labels):
    return float(np.mean(scores.argmax(-1) == labels))
