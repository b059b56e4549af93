"""`to_tflite`: a quantized Keras model to a verified `.tflite` file."""

import dataclasses
import logging
import os
import time
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from rich.progress import Progress, SpinnerColumn, TextColumn

from tfquant.calibrate.samples import sample_rows
from tfquant.data.files import check_file, replacing
from tfquant.devices.tflm import NAME as MICRO
from tfquant.graph.runner import flattened
from tfquant.litert import micro
from tfquant.litert.flatbuffer import File
from tfquant.litert.interpreter import first_refused, run_signature
from tfquant.litert.interpreter import run as run_here
from tfquant.passes.front import split_front
from tfquant.passes.precision import TO_FLOAT32, in_float32, policy
from tfquant.report import ConversionReport
from tfquant.report.conversion import HELP
from tfquant.report.record import provenance
from tfquant.rewrite.lower import lower
from tfquant.rewrite.validate import check_is_model
from tfquant.skeleton.anchor import anchor, layer_names
from tfquant.skeleton.float_file import convert_float
from tfquant.skeleton.signature import input_names, output_names
from tfquant.tflite.assign import REFUSED, assign
from tfquant.tflite.compared import Compared, compare_all
from tfquant.tflite.describe import elsewhere, float_operators, layer_reports, tensor_reports
from tfquant.tflite.verify import Verifier, point_tensors, saturated_biases
from tfquant.wrappers import KnownIntegers, Quantize
from tfquant.wrappers.norms import norms_in_words

_logger = logging.getLogger("tfquant")

# Key of the signature of the model itself.
DEFAULT = "serving_default"


@policy(TO_FLOAT32)
def to_tflite(
    model,
    path,
    *,
    input_type: str | None = None,
    output_type: str | None = None,
    batch_size: int | None = 1,
    samples=None,
    verify: bool = True,
    strict: bool = True,
    run=None,
    signatures: dict | None = None,
    progress: bool = True,
) -> ConversionReport:
    """Converts a calibrated model to a `.tflite` file, runs both, and compares them.

    Args:
        model: Model from `quantize_model` or `quantize_apply`, calibrated if its scheme quantizes
            activations.
        path: The file to write. It appears when it is complete.
        input_type: Type of the file's inputs: `"int8"`, `"uint8"` (with 8-bit activations),
            `"int16"` (with 16-bit ones) or `"float32"`. The default is the width of the
            activations, or `"float32"` where they are float.
        output_type: Type of its outputs; the default is `input_type`.
        batch_size: Fixed batch dimension, `None` for a free one. With a fixed one, which is faster,
            free lengths of sequences become those of the samples.
        samples: Inputs for the comparison, in any form that `calibrate` takes. The default is what
            `calibrate` saw; a model loaded from a file has forgotten it, and random inputs within
            the calibrated range are used.
        verify: Whether to compare. What cannot be compared is written, and the report says so.
        strict: Whether it is an error that the file computes something else than the model though
            each operator does what it should: a fault of tfquant's, or of a layer of your own.
        run: Function that runs a file on the device that the model simulates, where that is
            elsewhere: of the file's bytes and a list of arrays of integers, one for each input with
            the rows first; it returns such a list of outputs. The default is LiteRT on this
            machine; where it cannot stand for the device nothing is compared, as the report says.
        signatures: Dict from a key to a further quantized model, as that of
            `tf.saved_model.save`: one file has them all, and what weights they share once.
            LiteRT's `get_signature_runner(key)` runs each; `model` is `"serving_default"`, and what
            runs without a signature. `samples` are those of `model`; the others are compared on
            what `calibrate` saw.
        progress: Whether to show a progress bar.

    Returns:
        `ConversionReport`; print it. Its `signatures` are those of the further models.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not quantized or not calibrated, has weights in groups that
            LiteRT does not multiply, a type does not fit, or the samples do not.
        RuntimeError: If LiteRT, or TensorFlow Lite Micro for `device="tflm"`, does not run the
            file (every file runs once before it gets its name), or `strict` finds that it
            computes something else.
        OSError: If `path` cannot be written.
    """
    path = os.fspath(path)
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"`batch_size` must be a positive integer or None. Received: {batch_size!r}."
        )
    check_file(path)
    models = {DEFAULT: model, **_checked_signatures(signatures)}
    for one in models.values():
        check_is_model(one)
    contents, reports = {}, {}
    for key, one in models.items():
        contents[key], reports[key] = _convert(
            one,
            path,
            key,
            (input_type, output_type),
            batch_size,
            samples if key == DEFAULT else None,
            (verify, strict, run),
            progress,
        )
    content, report = contents[DEFAULT], reports.pop(DEFAULT)
    if reports:
        content = _joined(contents)
        report = dataclasses.replace(report, quantized_bytes=len(content), signatures=reports)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
    return report


def _checked_signatures(signatures):
    """Returns a dict of further models, or raises."""
    signatures = {} if signatures is None else signatures
    fits = isinstance(signatures, dict) and all(isinstance(key, str) and key for key in signatures)
    if not fits or DEFAULT in signatures:
        received = list(signatures) if isinstance(signatures, dict) else signatures
        raise ValueError(
            f"`signatures` must be a dict from keys, other than '{DEFAULT}' (that is `model`), to "
            f"quantized models. Received: {received!r}."
        )
    return signatures


def _joined(contents):
    """Returns one file of several, each with its signature."""
    first, *others = [File(content) for content in contents.values()]
    for other in others:
        first.join(other)
    content = first.to_bytes()
    for key, alone in contents.items():
        received, expected = (run_signature(x, key) for x in (content, alone))
        for name, values in expected.items():
            if not np.array_equal(values, received[name], equal_nan=values.dtype.kind == "f"):
                raise RuntimeError(
                    f"Signature '{key}' must compute what its model computes in a file of its own, "
                    f"and output '{name}' does not. Nothing was written. Please report the models."
                )
    return content


def _convert(model, path, key, types, batch_size, samples, comparing, progress):
    """Converts one model; returns the bytes of a file of its own and its `ConversionReport`."""
    verify, strict, run = comparing
    began, origin_model = time.monotonic(), model
    whole = in_float32(flattened(model))
    front, model = split_front(whole)
    columns = SpinnerColumn(), TextColumn("{task.description}")
    with KnownIntegers(), Progress(*columns, transient=True, disable=not progress) as bar:
        task = bar.add_task("Converting the float model")
        lowered = lower(model)
        _check_groups(lowered)
        asked, (input_type, output_type) = types, _io_types(lowered, *types)
        rows, origin = sample_rows(whole, samples)
        if front is not None:
            rows = [np.asarray(x) for x in tree.flatten(front(_as_tensors(rows)))]
        written = _write_what_runs(lowered, batch_size, rows, (input_type, output_type), key)
        file, content, float_file, anchors, lost, assignment = written
        float_bytes, float_file = float_file.num_bytes, float_file.file
        bar.update(task, description="Writing integers")
        _warn_of_floats(file, lowered, asked)
        described = layer_reports(lowered.units, float_file, anchors, assignment)
        compared = Compared(described)
        run = run or _run_of(lowered.device)
        if verify and run is not None:
            bar.update(task, description="Comparing Keras with LiteRT")
            tensors = point_tensors(file, float_file, anchors)
            begin = partial(Verifier, model, lowered, file, content, tensors, rows, run)
            integer = not assignment.float_reasons
            compared = compare_all(begin, lowered.units, described, integer)
            _check_agrees(compared, strict)
        report = ConversionReport(
            path=path,
            float_bytes=float_bytes,
            quantized_bytes=len(content),
            layers=compared.layers,
            float_operators=float_operators(float_file, assignment, lowered),
            saturated_biases=saturated_biases(file, assignment),
            end_to_end=compared.end_to_end,
            not_compared=compared.why_not,
            samples=origin,
            front_layers=_front_layers(front),
            lost_layers=lost,
            device=lowered.device.name,
            norms=norms_in_words(model),
            elsewhere=elsewhere(lowered, float_file, anchors, assignment),
            correction=str(getattr(whole, "correction", None) or ""),
            output_sqnr=dict(zip(output_names(lowered), compared.output_sqnr, strict=False)),
            inputs=tensor_reports(file, file.inputs, input_names(lowered)),
            outputs=tensor_reports(file, file.outputs, output_names(lowered)),
            provenance=provenance(origin_model, time.monotonic() - began),
        )
    if lost:
        _logger.warning(
            "What these layers compute was not found in the file, so that their ranges are not in "
            "it, and what reads them may compute in float: %s. Please report the model.",
            ", ".join(f"'{name}'" for name in lost),
        )
    if report.swallowed:
        _logger.warning(
            "One grid holds what is far apart, and leaves next to nothing of %s: %s.",
            "; ".join(report.swallowed),
            HELP,
        )
    for doubt in report.doubts:
        _logger.warning("Look at this: %s.", doubt)
    if compared.why_not:
        _logger.warning("The file could not be compared with the model: %s", compared.why_not)
    return content, report


def _write_what_runs(lowered, batch_size, rows, types, key):
    """Writes a file that LiteRT runs: an operator that it refuses computes in float.

    Kernels bound the steps between which they rescale, and each library has bounds of its own.

    Returns:
        `(file, content, float_file, anchors, lost, assignment)`.
    """
    from tfquant.tflite.write import write  # ai-edge-quantizer takes long to import.

    refused, (runtime, error_of) = {}, _checked_by(lowered.device)
    while True:
        float_file = convert_float(lowered, batch_size, rows)
        anchors, rounded_again, lost = anchor(float_file, lowered)
        names = layer_names(float_file.file, anchors)
        assignment = assign(float_file, anchors, rounded_again, lowered, refused)
        integer = {name for i in assignment.integer for name in _output_names(float_file.file, i)}
        file = write(float_file.file, assignment, *types)
        file.sign(input_names(lowered), output_names(lowered), key)
        content = file.to_bytes()
        found = first_refused(file, content, error_of)
        if found is None:
            return file, content, float_file, anchors, lost, assignment
        op, error = found
        places = [file.name(i).split(";")[0] for i in op.outputs]
        layers = [f"layer '{names[place]}'" for place in places if place in names]
        name = _float_name(file.name(op.outputs[0]), integer)
        if name is None or name in refused:
            raise RuntimeError(
                f"{runtime} does not run {op.name} of {(layers or places)[0]}, and nothing was "
                f"written. {_HELP[runtime]} {runtime} says: {error}"
            ) from error
        refused[name] = f"{REFUSED}: {error}"
        _logger.warning(
            "%s does not run %s of %s on integers of these steps, and it computes in float. "
            "%s says: %s",
            runtime,
            op.name,
            (layers or places)[0],
            runtime,
            error,
        )


# What to do where a runtime does not run a file.
_HELP = {
    "LiteRT": "Please report the model.",
    MICRO: "Take another layer in its place, or register an operator of your own there and convert "
    "for device='litert_reference'.",
}


def _checked_by(device):
    """Returns the name of what must run a file, and its function of errors."""
    on_micro = device.runtime == "tflm" and micro.is_there()
    return (MICRO, micro.error) if on_micro else ("LiteRT", None)


def _output_names(file, index):
    return [file.name(i) for i in file.ops[index].outputs]


def _float_name(name, integer):
    """Returns which of the outputs `integer` of the float file a tensor is, or `None`."""
    names = (name, *(name.removesuffix(end) for end in ("_quantized", "_dequant")))
    return next((found for found in names if found in integer), None)


def _warn_of_floats(file, lowered, asked):
    """Warns of inputs and outputs that are float, where somebody asked for integers."""
    ends = (lowered.model.inputs, file.inputs), (lowered.model.outputs, file.outputs)
    names = input_names(lowered), output_names(lowered)
    for what, wanted, (tensors, indices), called in zip(
        ("Inputs", "Outputs"), asked, ends, names, strict=True
    ):
        real = [keras.backend.is_float_dtype(x.dtype) for x in tensors]
        floats = [
            f"'{name}'"
            for name, index, is_real in zip(called, indices, real, strict=True)
            if is_real and file.type(index) == "FLOAT32"
        ]
        if floats and wanted not in (None, "float32"):
            _logger.warning(
                "%s stay float32, not %s, since layers beside them compute in float: %s.",
                what,
                wanted,
                ", ".join(floats),
            )


def _check_agrees(compared, strict):
    """Raises if the file does something else than the model, and nobody wants it all the same."""
    if compared.parted and strict:
        parity = compared.end_to_end
        raise RuntimeError(
            f"The file must compute what the model computes. They part at {compared.parted}: end "
            f"to end {parity.differing:,} of {parity.values:,} values differ, by at most "
            f"{parity.largest:g} steps, and no operator says why. Nothing was written; "
            "strict=False writes it all the same. Please report the model."
        )


def _check_groups(lowered):
    """Raises if groups of weights share a scale where LiteRT's kernels do not have it.

    LiteRT 2.3 multiplies such weights in 4 bits, by inputs that it quantizes when it runs. It takes
    files with others and computes something else: DEQUANTIZE reads scales as zeros.
    """
    found = {}
    for unit in lowered.units:
        for kernel in unit.kernels:
            if kernel.group_size and not (unit.dynamic and kernel.spec.num_bits <= 4):
                found.setdefault((kernel.spec.num_bits, kernel.group_size), []).append(unit.name)
    for (num_bits, group_size), names in found.items():
        raise ValueError(
            "LiteRT multiplies weights in groups where they have 4 bits and activations are "
            "quantized at run time: scheme 'w4a8_g32'. Received: layers "
            f"{names} of {num_bits}-bit weights in groups of {group_size}. Use that scheme, one "
            "with a scale for each channel such as 'w4', or tfq.to_packed."
        )


def _run_of(device):
    """Returns what runs files here as a device does, `None` if nothing can stand for it."""
    if device.runtime == "tflm" and micro.is_there():
        return micro.run
    if device.runtime == "litert" and device.runs_here():
        return partial(run_here, resolver=device.resolver)
    return None


def _as_tensors(rows):
    return [tf.constant(array) for array in rows]


def _front_layers(front):
    """Returns the names and types of the layers that were cut off."""
    found = [] if front is None else front.layers
    return {x.name: type(x).__name__ for x in found if not isinstance(x, keras.layers.InputLayer)}


def _io_types(lowered, input_type, output_type):
    types = []
    for name, value, ends in (
        ("input_type", input_type, lowered.model.input),
        ("output_type", output_type, lowered.model.output),
    ):
        native = _native_type(lowered, ends)
        allowed = {"int8": ("int8", "uint8", "float32"), "int16": ("int16", "float32")}
        allowed = allowed.get(native, ("float32",))
        if value is None:  # The input's type where it fits: it is the user's wish.
            value = types[0] if types and types[0] in allowed else native
        if value not in allowed:
            raise ValueError(
                f"`{name}` must be one of {', '.join(allowed)} for a model with "
                f"{native} activations. Received: {value!r}."
            )
        types.append(value)
    return types


def _native_type(lowered, ends):
    """Returns the type of the widest grid among the inputs or outputs `ends` of a model."""
    tensors = set(tree.flatten(ends))
    units = [unit for unit in lowered.units if isinstance(unit.layer, Quantize)]
    tensors |= {x for unit in units for x in unit.outputs if unit.inputs[0] in tensors}
    grids = [point.grid for point in lowered.points if point.grid]
    ends = [point.grid for point in lowered.points if point.grid and point.tensor in tensors]
    widths = {grid.spec.stored_bits for grid in ends or grids}
    return f"int{max(widths)}" if widths else "float32"
