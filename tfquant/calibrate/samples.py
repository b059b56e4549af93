"""Rows that a model and its file are compared on."""

import keras
import numpy as np

from tfquant.data.batches import batches
from tfquant.wrappers import Quantize, QuantizeWrapper

# Where inputs come from, if nobody gave any.
RANDOM = "random inputs"

RANDOM_ROWS = 16
SAMPLE_ROWS = 512


def sample_rows(model, samples=None):
    """Returns rows for a comparison: given ones, those of calibration, or random ones like them.

    Args:
        model: The quantized model.
        samples: As of `to_tflite`.

    Returns:
        `(arrays, origin)`: one array for each input, and where they come from, in words.
    """
    if samples is not None:
        parts = list(batches(samples, model.inputs, SAMPLE_ROWS, steps=1))
        return parts[0], "your samples"
    kept = getattr(model, "calibration_samples", None)
    if kept:
        return [np.asarray(array) for array in kept], "calibration inputs"
    generator = np.random.default_rng(0)
    rows = []
    for x in model.inputs:
        shape = (RANDOM_ROWS, *(n or 8 for n in x.shape[1:]))
        low, high = _input_range(model, x)
        if x.dtype == "string":
            rows.append(np.full(shape, "", object))
        elif keras.backend.is_float_dtype(x.dtype):
            rows.append(generator.uniform(low, high, shape).astype("float32"))
        else:
            rows.append(generator.integers(*_integer_range(model, x), shape).astype(x.dtype))
    return rows, RANDOM


def _integer_range(model, x):
    """Returns the bounds of integers that an input takes: of a table's rows, or of its type."""
    for layer in model.layers:
        table = layer.layer if isinstance(layer, QuantizeWrapper) else layer
        if isinstance(table, keras.layers.Embedding) and layer.input is x:
            return 0, table.input_dim
    return 0, 256 if x.dtype == "uint8" else 2


def _input_range(model, x):
    for layer in model.layers:
        if isinstance(layer, Quantize) and layer.name == f"quantize_{x.name}":
            params, spec = layer.quantizer.params(), layer.quantizer.spec
            bounds = np.array([spec.qmin, spec.qmax]) - float(params.zero_point)
            return bounds * float(params.scale)
    return -1.0, 1.0
