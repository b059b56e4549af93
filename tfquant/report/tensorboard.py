"""`QuantizationTensorBoard`: ranges, scales, errors and flips of a model in training."""

import os

import keras
import numpy as np
import tensorflow as tf
from keras import ops, tree

from tfquant.graph.walk import models
from tfquant.quantizers import RecordingScope, Static, WeightQuantizer
from tfquant.report.model import summarize
from tfquant.wrappers import Quantize, QuantizeWrapper


class QuantizationTensorBoard(keras.callbacks.Callback):
    """Writes how a quantized model trains, for TensorBoard, after every epoch.

    For each layer `<name>`, with standard summaries:

    | tag | what |
    |---|---|
    | `weights/<name>/bits` | width, which schedules change; 32 while it trains in float |
    | `weights/<name>/scale` | mean of the steps of its channels |
    | `weights/<name>/sqnr_db` | signal to quantization noise of the weights, in dB |
    | `weights/<name>/clipped` | share of weights beyond the ends of the grid |
    | `weights/<name>/flipped` | share of weights whose integer changed since the last epoch |
    | `weights/<name>/float`, `.../quantized` | histograms before and after rounding |
    | `activations/<name>/low`, `.../high` | range of the grid |
    | `activations/<name>/scale` | its step |
    | `activations/<name>/sqnr_db`, `.../clipped` | as for weights, on calibration rows |
    | `model` | text: every layer with its bits |

    Activations are measured on rows that the model was calibrated with, weights quantized.

    Args:
        log_dir: Folder for the event files; they go to its subfolder `quantization`.
        histograms: Whether to write histograms.
        rows: Number of calibration rows to measure activations on; 0 leaves activations out.

    Raises:
        ValueError: When training starts, if the model has no quantized layers.

    Example:

    ```python
    q.fit(images, labels, epochs=3, callbacks=[tfq.QuantizationTensorBoard("logs")])
    ```
    """

    def __init__(self, log_dir, *, histograms: bool = True, rows: int = 32):
        super().__init__()
        self.log_dir = os.path.join(os.fspath(log_dir), "quantization")
        self.histograms = histograms
        self.rows = rows

    def on_train_begin(self, logs=None):
        """Writes what training begins with, as step 0."""
        self._quantized = _quantized_model(self.model)
        self._integers = {}
        self._writer = tf.summary.create_file_writer(self.log_dir)
        with self._writer.as_default():
            lines = str(summarize(self._quantized)).splitlines()
            tf.summary.text("model", "\n".join("    " + line for line in lines), step=0)
        self._write(step=0)

    def on_epoch_end(self, epoch, logs=None):
        """Writes the state behind the epoch, as step `epoch + 1`."""
        self._write(step=epoch + 1)

    def on_train_end(self, logs=None):
        """Closes the file."""
        self._writer.close()

    def _write(self, step):
        with self._writer.as_default(step=step):
            for layer in self._quantized.layers:
                if isinstance(layer, QuantizeWrapper):
                    self._write_weights(layer)
            if self.rows:
                self._write_activations()
        self._writer.flush()

    def _write_weights(self, wrapper):
        for number, (variable, quantizer) in enumerate(wrapper.weight_quantizers):
            if not isinstance(quantizer, WeightQuantizer):
                continue
            tag = f"weights/{wrapper.layer.name}" + (f"/{variable.name}" if number else "")
            w = np.asarray(quantizer.latent(ops.cast(variable.value, "float32")))
            rounded = np.asarray(ops.cast(quantizer.call(variable.value), "float32"))
            scale = np.asarray(quantizer.params(variable.value).scale)
            integers = np.rint(rounded / scale)
            before = self._integers.get(tag)
            self._integers[tag] = integers
            tf.summary.scalar(f"{tag}/bits", quantizer.spec.num_bits if quantizer.active else 32)
            tf.summary.scalar(f"{tag}/scale", scale.mean())
            tf.summary.scalar(f"{tag}/sqnr_db", sqnr_db(w, rounded))
            limit = scale * (quantizer.spec.qmax + 0.5)
            tf.summary.scalar(f"{tag}/clipped", np.mean(np.abs(w) > limit))
            if before is not None:
                tf.summary.scalar(f"{tag}/flipped", np.mean(before != integers))
            if self.histograms:
                tf.summary.histogram(f"{tag}/float", w)
                tf.summary.histogram(f"{tag}/quantized", rounded)

    def _write_activations(self):
        samples = getattr(self._quantized, "calibration_samples", None)
        if samples is None:
            return
        rows = [array[: self.rows] for array in samples]
        with RecordingScope() as scope:
            self._quantized(tree.pack_sequence_as(self._quantized.input, rows), training=False)
        names = _names_of_activations(self._quantized)
        for quantizer, x in scope.records:
            name = names.get(quantizer)
            if name is None or not (isinstance(quantizer, Static) and quantizer.calibrated):
                continue
            params = quantizer.params()
            scale, zero_point = float(params.scale), float(params.zero_point)
            low = scale * (quantizer.spec.qmin - zero_point)
            high = scale * (quantizer.spec.qmax - zero_point)
            x = np.asarray(x, np.float32)
            rounded = np.clip(np.rint(x / scale) * scale, low, high)
            outside = (x < low - scale / 2) | (x > high + scale / 2)
            for key, value in (
                ("low", low),
                ("high", high),
                ("scale", scale),
                ("sqnr_db", sqnr_db(x, rounded)),
                ("clipped", outside.mean()),
            ):
                tf.summary.scalar(f"activations/{name}/{key}", value)


def sqnr_db(x, rounded) -> float:
    """Returns `10 log10(sum(x^2) / sum((x - rounded)^2))`, at most 120 and at least -120."""
    x, rounded = np.asarray(x, np.float64), np.asarray(rounded, np.float64)
    signal, noise = (x**2).sum(), ((x - rounded) ** 2).sum()
    return float(10 * np.log10(np.clip(signal / max(noise, 1e-300), 1e-12, 1e12)))


def _quantized_model(model):
    """Returns the model with quantized layers: `model`, or one inside it, such as a student."""
    for inner in models(model):
        if any(isinstance(layer, (Quantize, QuantizeWrapper)) for layer in inner.layers):
            return inner
    raise ValueError(
        "QuantizationTensorBoard expects a model from tfq.quantize_model. "
        f"Received: '{model.name}', which has no quantized layers."
    )


def _names_of_activations(model):
    """Returns a name for each activation quantizer."""
    names = {}
    for layer in model.layers:
        if isinstance(layer, Quantize):
            names[layer.quantizer] = layer.name
        elif isinstance(layer, QuantizeWrapper):
            for site, quantizers in enumerate(layer.output_quantizers):
                for output, quantizer in enumerate(quantizers):
                    suffix = f"/call_{site}" if site else ""
                    suffix += f"/output_{output}" if output else ""
                    names[quantizer] = layer.layer.name + suffix
    return names
