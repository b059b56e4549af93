"""`to_onnx`: a quantized Keras model to a verified ONNX file."""

import logging
import os

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from rich.progress import Progress, SpinnerColumn, TextColumn

from tfquant.about import __version__
from tfquant.calibrate.samples import sample_rows
from tfquant.data.files import check_file, replacing
from tfquant.graph.runner import flattened
from tfquant.nodes.extra import load
from tfquant.nodes.graph import write
from tfquant.onnx.describe import (
    differences,
    float_operators,
    integer_operators,
    layer_reports,
    remarks,
    wrong,
)
from tfquant.onnx.run import Session
from tfquant.onnx.verify import Verifier
from tfquant.passes.front import split_front
from tfquant.passes.precision import TO_FLOAT32, in_float32, policy
from tfquant.report import OnnxReport
from tfquant.rewrite.lower import lower
from tfquant.rewrite.validate import check_is_model
from tfquant.wrappers import KnownIntegers

_logger = logging.getLogger("tfquant")

# The largest file that one message of protobuf holds.
LARGEST = 2**31 - 2**20


@policy(TO_FLOAT32)
def to_onnx(
    model,
    path,
    *,
    samples=None,
    verify: bool = True,
    strict: bool = True,
    progress: bool = True,
) -> OnnxReport:
    """Writes a calibrated model as an ONNX file, runs both, and compares them.

    The file holds the integers of the model: 8-bit weights with a scale for each channel, 4-bit
    ones with a scale for each channel or group, biases of 32 bits; DequantizeLinear and
    QuantizeLinear say where the grids of activations are. Inputs and outputs are those of the
    model, real and with channels last; the batch is free. Needs `pip install "tfquant[onnx]"`.

    A model of `quantize_model(..., device="onnxruntime")` computes what ONNX Runtime computes; one
    of another device rounds otherwise in places, which the report names.

    Args:
        model: Model from `quantize_model` or `quantize_apply`, calibrated if its scheme quantizes
            activations.
        path: The file to write. It appears when ONNX Runtime has run it.
        samples: Inputs for the comparison, in any form that `calibrate` takes. The default is what
            `calibrate` saw; a model loaded from a file has forgotten it, and random inputs within
            the calibrated range are used.
        verify: Whether to compare. Any file is loaded and run.
        strict: Whether it is an error that the file computes something else than the model.
        progress: Whether to show a progress bar.

    Returns:
        `OnnxReport`; print it.

    Raises:
        ImportError: If the extra is not installed.
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not quantized or not calibrated, the samples do not fit, or it
            has layers that tfquant does not write as ONNX: all of them are named.
        RuntimeError: If ONNX Runtime does not run the file, or `strict` finds that it computes
            something else.
        OSError: If `path` cannot be written.

    Example:

    ```python
    q = tfq.quantize_model(model, "w8a8", device="onnxruntime")
    tfq.calibrate(q, images)
    print(tfq.to_onnx(q, "model.onnx"))
    ```
    """
    path = os.fspath(path)
    load()
    check_file(path)
    check_is_model(model)
    whole = in_float32(flattened(model))
    front, model = split_front(whole)
    columns = SpinnerColumn(), TextColumn("{task.description}")
    with KnownIntegers(), Progress(*columns, transient=True, disable=not progress) as bar:
        task = bar.add_task("Writing integers")
        lowered = lower(model)
        written = write(model, lowered, f"tfquant {__version__}")
        content = _checked(written.model)
        rows, origin = sample_rows(whole, samples)
        if front is not None:
            rows = [np.asarray(x) for x in tree.flatten(front([tf.constant(a) for a in rows]))]
        bar.update(task, description="Comparing Keras with ONNX Runtime")
        verifier = Verifier(written, rows)
        session = Session(content)
        session(verifier.feed(verifier.few))
        layers = layer_reports(written, verifier, lowered, verify)
        end_to_end = verifier.end_to_end(session) if verify else None
        report = OnnxReport(
            path=path,
            float_bytes=4 * lowered.model.count_params(),
            quantized_bytes=len(content),
            layers=layers,
            float_operators=float_operators(written, verifier),
            end_to_end=end_to_end,
            samples=origin,
            front_layers=_front_layers(front),
            device=lowered.device.name,
            correction=str(getattr(whole, "correction", None) or ""),
            integer_operators=integer_operators(session),
            elsewhere=differences(lowered),
            remarks=remarks(lowered, layers, verifier, content, session),
        )
        if verify and strict:
            _check_agrees(report)
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(content)
        with open(temporary, "rb") as file:
            Session(file.read())(verifier.feed([array[:1] for array in verifier.few]))
    for remark in report.remarks:
        _logger.info("%s", remark)
    return report


def _checked(model):
    """Returns the bytes of a model that `onnx.checker` finds nothing in."""
    onnx, _ = load()
    size = model.ByteSize()
    if size > LARGEST:
        raise ValueError(
            f"A file of up to {LARGEST:,} bytes is expected. Received: a model of {size:,} bytes."
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RuntimeError(
            "The file is no ONNX, and nothing was written. Please report the model. "
            f"onnx.checker says: {error}"
        ) from error
    return model.SerializeToString()


def _front_layers(front):
    """Returns the names and types of the layers that were cut off."""
    found = [] if front is None else front.layers
    return {x.name: type(x).__name__ for x in found if not isinstance(x, keras.layers.InputLayer)}


def _check_agrees(report):
    """Raises if the file does something else than the model."""
    found = wrong(report)
    if found:
        raise RuntimeError(
            f"The file must compute what the model computes. They part at {found}. Nothing was "
            "written; strict=False writes it all the same. Please report the model."
        )
