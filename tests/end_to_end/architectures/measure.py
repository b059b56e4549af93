"""What becomes of a model under a scheme, beside the TFLite converter's own quantization."""

import contextlib
import dataclasses
import io

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tfquant as tfq
from tfquant.litert.flatbuffer import File

# Schemes that the TFLite converter has too.
RIVALS = {"w8a8": "int8", "w8a16": "int16", "w8a8_dynamic": "dynamic"}
SCHEMES = ("w8a8", "w4a8", "w8a16", "w8a8_dynamic")

# Sums in float come out differently in another order, relative to the largest value.
FLOAT_ROUNDING = 1e-5

# Kernels of weights, which no norm consists of, whatever the converter calls them.
KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")

_OPS = tf.lite.OpsSet
_ALLOWED = {
    "int8": [_OPS.TFLITE_BUILTINS_INT8, _OPS.TFLITE_BUILTINS],
    "int16": [
        _OPS.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        _OPS.TFLITE_BUILTINS,
    ],
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model under one scheme.

    Attributes:
        sqnr: Ratio of the float model's signal to its distance from ours, in dB.
        rival: The same of the TFLite converter's file; `None` where it has no such scheme or fails.
        float_operators: Float operators of our file, those of norms apart.
        rival_float: Those of the TFLite converter's.
        apart: Values that differ op by op where the operator is not named inexact.
        named: Values that differ op by op where it is.
        end_to_end: Output values that differ.
        agrees: Whether the end was compared, and agrees as far as op by op says.
    """

    sqnr: float
    rival: float | None
    float_operators: list[str]
    rival_float: list[str]
    apart: int
    named: int
    end_to_end: int
    agrees: bool


def measure(model, data, scheme, folder) -> Measured:
    """Quantizes, converts and compares `model`."""
    path = folder / "model.tflite"
    q = tfq.quantize_model(model, scheme)
    if tfq.SCHEMES[scheme].static:
        tfq.calibrate(q, data, progress=False)
    report = tfq.to_tflite(q, path, samples=data, progress=False)
    expected = flat(model(data, training=False))
    compared = [layer for layer in report.layers if layer.parity]
    exact = lambda layer: layer.arithmetic == "exact"  # noqa: E731
    apart = sum(_differing(layer.parity) for layer in compared if exact(layer))
    named = sum(_differing(layer.parity) for layer in compared if not exact(layer))
    end = _differing(report.end_to_end)
    rival, rival_float = None, []
    if scheme in RIVALS:
        content = stock(model, data, RIVALS[scheme])
        if content is not None:
            rival_float = float_operators(content)
            rival = rival_sqnr(content, model, data)
    return Measured(
        sqnr(expected, flat(q(data, training=False))),
        rival,
        _without_norms(path, report),
        rival_float,
        apart,
        named,
        end,
        bool(report.end_to_end and (end == 0 or named or apart or scheme == "w8a8_dynamic")),
    )


def _differing(parity) -> int:
    """Returns how many values differ, in float by more than its own rounding."""
    if parity is None or (not parity.in_steps and parity.largest <= FLOAT_ROUNDING):
        return 0
    return parity.differing


def stock(model, data, kind):
    """Returns the TFLite converter's own file, `None` where it fails."""
    rows = data if isinstance(data, list) else [data]
    names = [x.name for x in model.inputs]
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind != "dynamic":
        converter.target_spec.supported_ops = _ALLOWED[kind]

        def samples():
            for i in range(len(rows[0])):
                yield {n: array[i : i + 1] for n, array in zip(names, rows, strict=True)}

        converter.representative_dataset = samples
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return converter.convert()
        except Exception:  # Whatever the converter raises: it has no file then.
            return None


def _without_norms(path, report) -> list[str]:
    """Returns the float operators of our file, without those of norms whatever their names."""
    norms = {op.name for op in report.float_operators if op.reason.startswith("norm '")}
    return float_operators(path.read_bytes(), norms)


def float_operators(content, norms=frozenset()) -> list[str]:
    """Returns the names of float operators in a file, without those at the borders of integers.

    Those of norms are left out, and the sums that nothing but norms read.

    Args:
        content: The bytes of the file.
        norms: Names of operators of norms beside those that are called so.
    """
    file, found, apart = File(content), [], set()
    for op in reversed(file.ops):
        if op.name == "QUANTIZE" or not any(file.type(i) == "FLOAT32" for i in op.outputs):
            continue
        readers = {reader.index for i in op.outputs for reader in file.consumers(i)}
        residual = op.name in ("ADD", "DEQUANTIZE") and readers and readers <= apart
        name = file.name(op.outputs[0]).split(";")[0]
        norm = op.name not in KERNELS and ("norm" in name or name in norms)
        if residual or norm:
            apart.add(op.index)
        elif op.name != "DEQUANTIZE":
            found.append(op.name)
    return found[::-1]


def rival_sqnr(content, model, data):
    """Returns how close the TFLite converter's file is to the model; `None` if it does not run."""
    rows = data if isinstance(data, list) else [data]
    interpreter = Interpreter(model_content=content)
    runner = interpreter.get_signature_runner()
    names = [x.name for x in model.inputs]
    outputs = []
    try:
        for i in range(len(rows[0])):
            given = {n: array[i : i + 1] for n, array in zip(names, rows, strict=True)}
            found = runner(**given)
            outputs.append(np.concatenate([np.ravel(found[n]) for n in sorted(found)]))
    except (RuntimeError, ValueError):  # A file that LiteRT does not run.
        return None
    expected = model(data, training=False)
    parts = expected if isinstance(expected, (list, tuple)) else [expected]
    by_row = [np.reshape(p, (len(rows[0]), -1)) for p in parts]
    return sqnr(np.concatenate(by_row, axis=1).ravel(), np.concatenate(outputs))


def sqnr(expected, got) -> float:
    """Returns the ratio of the signal to the noise in dB."""
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    noise = np.sum((expected - got) ** 2)
    return float(10 * np.log10(np.sum(expected**2) / max(noise, 1e-30)))


def flat(outputs):
    """Returns all outputs in a row."""
    return np.concatenate([np.ravel(x) for x in tf.nest.flatten(outputs)])
