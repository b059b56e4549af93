"""`to_tflite`: a quantized Keras model to a verified `.tflite` file."""

import logging
import os
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from rich.progress import Progress, SpinnerColumn, TextColumn

from tfquant import devices
from tfquant.convert.files import check_file, replacing
from tfquant.convert.tflite.anchor import anchor, layer_names
from tfquant.convert.tflite.assign import AS_THE_SCHEME_SAYS, assign
from tfquant.convert.tflite.float_file import convert_float, probe
from tfquant.convert.tflite.interpreter import first_refused, run_inner, to_file_inputs
from tfquant.convert.tflite.verify import Verifier, point_tensors, saturated_biases, sqnr
from tfquant.convert.tflite.write import write
from tfquant.data.batches import batches
from tfquant.passes.front import split_front
from tfquant.passes.precision import TO_FLOAT32, in_float32, policy
from tfquant.registry import LinearConfig
from tfquant.report import ConversionReport, FloatOperator, LayerReport
from tfquant.rewrite.lower import lower
from tfquant.rewrite.validate import check_is_model
from tfquant.wrappers import Quantize

_logger = logging.getLogger("tfquant")

INPUT_TYPES = ("int8", "uint8", "int16", "float32")
RANDOM_ROWS = 16
SAMPLE_ROWS = 512


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
        verify: Whether to compare.
        progress: Whether to show a progress bar.

    Returns:
        `ConversionReport`; print it.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not quantized or not calibrated, has weights in groups that
            LiteRT does not multiply, a type does not fit, or the samples do not.
        RuntimeError: If LiteRT does not run the file: every file runs once before it gets its name.
        OSError: If `path` cannot be written.
    """
    path = os.fspath(path)
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"`batch_size` must be a positive integer or None. Received: {batch_size!r}."
        )
    check_file(path)
    check_is_model(model)
    whole = in_float32(model)
    front, model = split_front(whole)
    lowered = lower(model)
    _check_groups(lowered)
    input_type, output_type = _io_types(lowered, input_type, output_type)
    columns = SpinnerColumn(), TextColumn("{task.description}")
    with Progress(*columns, transient=True, disable=not progress) as bar:
        task = bar.add_task("Converting the float model")
        rows, origin = _sample_rows(whole, samples)
        if front is not None:
            rows = [np.asarray(x) for x in tree.flatten(front(_as_tensors(rows)))]
        float_file = convert_float(lowered, batch_size, rows)
        float_bytes = len(float_file.to_bytes())
        bar.update(task, description="Finding the activations")
        sample = [array[:1] for array in rows]
        values = run_inner(float_file, sample)
        compute = partial(probe, lowered, sample)
        anchors, rounded_again, lost = anchor(float_file, values, lowered, compute)
        assignment = assign(float_file, anchors, rounded_again, lowered)
        bar.update(task, description="Writing integers")
        file = write(float_file, assignment, input_type, output_type)
        content = file.to_bytes()
        _check_runs(file, rows, layer_names(float_file, anchors))
        verifier, device = None, lowered.device
        if verify and device.runs_here():
            bar.update(task, description="Comparing Keras with LiteRT")
            tensors = point_tensors(file, float_file, anchors)
            verifier = Verifier(model, lowered, file, content, tensors, rows, lambda: None)
        report = ConversionReport(
            path=path,
            float_bytes=float_bytes,
            quantized_bytes=len(content),
            layers=[
                _layer(unit, float_file, anchors, assignment, verifier) for unit in lowered.units
            ],
            float_operators=_float_operators(float_file, assignment, lowered),
            saturated_biases=saturated_biases(file, assignment),
            end_to_end=verifier.end_to_end() if verifier else None,
            samples=origin,
            front_layers=_front_layers(front),
            lost_layers=lost,
            device=device.name,
            elsewhere=_elsewhere(device, lowered, float_file, anchors, assignment),
        )
    if lost:
        _logger.warning(
            "What these layers compute was not found in the file, so that their ranges are not in "
            "it, and what reads them may compute in float: %s. Please report the model.",
            ", ".join(f"'{name}'" for name in lost),
        )
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
    return report


def _elsewhere(device, lowered, file, anchors, assignment):
    """Returns what other devices compute otherwise: a dict from their names to operators."""
    rows = set()
    grids = {id(p.tensor): p.grid for points in anchors.values() for p in points}
    for unit in lowered.units:
        op, grid = _operator(unit, file, anchors, assignment), grids.get(id(unit.outputs[0]))
        spec = next((kernel.spec for kernel in unit.kernels), None)
        if op is not None and grid is not None:
            rows.add((op.name, spec and spec.num_bits, grid.spec.stored_bits))
    found = {}
    for other in devices.DEVICES.values():
        named = {
            f"INT{weight_bits or num_bits} {name}"
            for name, weight_bits, num_bits in rows
            if device.differs(other, name, weight_bits, num_bits)
        }
        if named:
            found[other.name] = sorted(named)
    return found


def _check_runs(file, rows, names):
    """Raises if LiteRT does not load the file or does not run it."""
    found = first_refused(file, to_file_inputs(file, rows))
    if found is not None:
        op, error = found
        places = [file.name(i).split(";")[0] for i in op.outputs]
        layers = [f"layer '{names[place]}'" for place in places if place in names]
        raise RuntimeError(
            f"LiteRT does not run {op.name} of {(layers or places)[0]}, and nothing was written. "
            f"Please report the model. LiteRT says: {error}"
        ) from error


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
    tensors = {id(x) for x in tree.flatten(ends)}
    units = [unit for unit in lowered.units if isinstance(unit.layer, Quantize)]
    tensors |= {id(x) for unit in units for x in unit.outputs if id(unit.inputs[0]) in tensors}
    grids = [point.grid for point in lowered.points if point.grid]
    ends = [point.grid for point in lowered.points if point.grid and id(point.tensor) in tensors]
    widths = {grid.spec.stored_bits for grid in ends or grids}
    return f"int{max(widths)}" if widths else "float32"


def _sample_rows(model, samples):
    """Returns one array for each input, and where they come from."""
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


def _layer(unit, file, anchors, assignment, verifier) -> LayerReport:
    """Describes one unit."""
    op = _operator(unit, file, anchors, assignment)
    grids = {id(p.tensor): p.grid for points in anchors.values() for p in points}
    grid = grids.get(id(unit.outputs[0]))
    fields = {}
    if unit.kernels:
        kernel = unit.kernels[0]
        fields = {"weight_bits": 16, "weight_sqnr": _weight_sqnr(unit)}
        if kernel.spec is not None:
            fields |= {
                "weight_bits": kernel.spec.num_bits,
                "granularity": _granularity(kernel),
                "scale": (float(kernel.scale.min()), float(kernel.scale.max())),
            }
    name = op.name if op else ("QUANTIZE" if isinstance(unit.layer, Quantize) else "-")
    return LayerReport(
        name=unit.name,
        operator=name,
        activation_bits=grid.spec.num_bits if grid else None,
        output_sqnr=verifier.output_sqnr(unit) if verifier else None,
        parity=verifier.unit(unit) if verifier else None,
        arithmetic=unit.layer.device.arithmetic(name, grid and grid.spec.stored_bits),
        note=_note(unit),
        **fields,
    )


def _granularity(kernel):
    if kernel.group_size:
        return f"{kernel.scale.size} groups of {kernel.group_size}"
    return "tensor" if len(kernel.scale) == 1 else f"{len(kernel.scale)} channels"


def _note(unit):
    config = getattr(unit.layer, "quantize_config", None)
    return config.why_not_grouped(unit.layer.layer) if isinstance(config, LinearConfig) else ""


def _operator(unit, file, anchors, assignment):
    """Returns the operator that computes a unit, `None` if it was computed away."""
    for index, of in assignment.units.items():
        if of is unit:
            return file.ops[index]
    for index, points in anchors.items():
        if points[0].tensor is unit.outputs[0]:
            return file.producer(index)
    return None


def _weight_sqnr(unit):
    variable, quantizer = unit.layer.weight_quantizers[0]
    weights = variable.numpy()
    return sqnr(weights, keras.ops.convert_to_numpy(quantizer.call(variable.value)))


def _float_operators(file, assignment, lowered):
    operators = []
    for index, reason in assignment.float_reasons.items():
        op = file.ops[index]
        name = file.name(op.outputs[0]).split(";")[0]
        for layers, what in (
            (lowered.float_layers, "is not quantized"),
            (lowered.weights_only, "has only its weights quantized"),
        ):
            for layer, kind in layers.items():
                if f"/{layer}" in name and reason != AS_THE_SCHEME_SAYS:
                    reason = f"layer '{layer}' ({kind}) {what}"
        operators.append(FloatOperator(name, op.name, reason))
    return operators
