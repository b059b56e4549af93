"""Setting activation grids from data."""

import math

import keras
import numpy as np
from keras import tree
from rich.progress import Progress

from tfquant.calibrate.bias_correction import correct_biases
from tfquant.data.batches import batches
from tfquant.quantizers import RecordingScope, Watch
from tfquant.rewrite.validate import check_is_model
from tfquant.wrappers import Quantize, QuantizeWrapper

# Rows kept at the model's inputs, so that a converted file can be compared on real data.
SAMPLE_ROWS = 256
SAMPLE_BYTES = 64 * 2**20

# Rows that biases are corrected on, and activations computed for it: fewer rows of a large model.
CORRECTION_ROWS = 128
CORRECTION_VALUES = 1.5e8


def calibrate(
    model,
    data,
    *,
    batch_size=32,
    steps=None,
    observer="percentile",
    bias_correction=True,
    progress=True,
):
    """Runs `data` through `model` and sets the grid of every activation.

    Weights are quantized and activations are not while observers watch. Interrupting it leaves the
    model as it was.

    Args:
        model: Model from `quantize_model` or `quantize_apply`. Changed in place.
        data: Array, list of arrays or dict of arrays (several inputs), generator of batches, or
            `tf.data.Dataset`. A hundred rows are usually enough.
        batch_size: Rows in a batch, where `data` is not batched already.
        steps: Number of batches to take; `None` takes all.
        observer: `"min_max"`, `"moving_average"`, `"percentile"`, `"mean_squared_error"` or
            `"entropy"`, an `Observer` class, or a function that returns an observer. The default
            kept the most predictions, biases corrected, on the models of `benchmarks/`.
        bias_correction: Whether to move each channel's bias by what quantization moved the
            channel's mean.
        progress: Whether to show a progress bar.

    Returns:
        `model`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not quantized, or the data are empty, of the wrong shape or
            dtype, or not finite.
    """
    check_is_model(model)
    if not any(isinstance(layer, (QuantizeWrapper, Quantize)) for layer in _layers(model)):
        raise ValueError(
            f"A model from tfq.quantize_model is expected. Received: '{model.name}', which has no "
            "quantized layers."
        )
    watch = Watch(observer)
    rows = []

    source = batches(data, model.inputs, batch_size, steps)
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("Calibrating", total=source.total)
        for arrays in source:
            with RecordingScope() as scope:
                model(tree.pack_sequence_as(model.input, arrays), training=False)
            values_per_row = sum(math.prod(x.shape[1:]) for _, x in scope.records)
            watch.see(scope)
            _keep(rows, arrays)
            bar.advance(task)
    watch.set_params()
    _leave_samples(model, rows)
    if bias_correction:
        count = max(1, min(CORRECTION_ROWS, int(CORRECTION_VALUES / max(values_per_row, 1))))
        correct_biases(model, [array[:count] for array in model.calibration_samples])
    _forget_traces(model)
    return model


def _layers(model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _layers(layer)


def _keep(rows, arrays):
    """Appends the first rows of a batch while there is room."""
    have = sum(len(batch[0]) for batch in rows)
    size = sum(array[:1].nbytes for array in arrays)
    room = min(SAMPLE_ROWS, max(1, SAMPLE_BYTES // max(size, 1))) - have
    if room > 0:
        rows.append([np.array(array[:room]) for array in arrays])


def _leave_samples(model, rows):
    model.calibration_samples = [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _forget_traces(model):
    """Makes Keras trace `predict` and its like again: the grids are known now."""
    model.predict_function = model.test_function = model.train_function = None
