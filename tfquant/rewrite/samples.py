"""Inputs on which a model is compared with what was made of it."""

import keras
import numpy as np

from tfquant.data.batches import batches
from tfquant.wrappers import Quantize

RANDOM_ROWS = 16
SAMPLE_ROWS = 512


def sample_rows(model, samples) -> tuple[list, str]:
    """Returns one array for each input, and where they come from.

    Args:
        model: Quantized model.
        samples: Inputs in any form that `calibrate` takes, or `None` for what that kept, or random
            ones.
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
            rows.append(generator.integers(0, 2, shape).astype(x.dtype))
    return rows, "random inputs"


def _input_range(model, x):
    for layer in model.layers:
        if isinstance(layer, Quantize) and layer.name == f"quantize_{x.name}":
            params, spec = layer.quantizer.params(), layer.quantizer.spec
            bounds = np.array([spec.qmin, spec.qmax]) - float(params.zero_point)
            return bounds * float(params.scale)
    return -1.0, 1.0
