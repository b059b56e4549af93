"""A report as a record: what it was made with, and how it is read again."""

import dataclasses
import json
import platform
from importlib import metadata

from tfquant.about import __version__
from tfquant.report.conversion import (
    ConversionReport,
    FloatOperator,
    LayerReport,
    Parity,
    PartReport,
    TensorReport,
)
from tfquant.report.packing import PackedLayerReport, PackingReport
from tfquant.report.printable import SCHEMA_VERSION

# What the integers of a file may hang on.
PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer", "numpy")

# Reports that are read again, and what their fields hold where that is no plain value.
REPORTS = {
    "ConversionReport": ConversionReport,
    "PackingReport": PackingReport,
}
PARTS = {
    "end_to_end": Parity,
    "float_operators": FloatOperator,
    "inputs": TensorReport,
    "outputs": TensorReport,
    "parity": Parity,
    "parts": PartReport,
    "signatures": ConversionReport,
}


def versions() -> dict[str, str]:
    """Returns the versions of tfquant, Python and what computes, by name."""
    found = {"tfquant": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return {**found, "machine": platform.machine()}


def provenance(model, seconds: float) -> dict:
    """Returns what a file was made with: recipe, calibration, versions, and how long it took.

    Args:
        model: The quantized model.
        seconds: Time that the conversion took.
    """
    recipe = getattr(model, "recipe", None)
    return {
        "recipe": None if recipe is None else recipe.get_config(),
        "calibration": getattr(model, "calibration", None),
        "versions": versions(),
        "seconds": round(seconds, 3),
    }


def from_json(content: str | bytes, path: str) -> ConversionReport | PackingReport:
    """Returns the report that `to_json` wrote.

    Args:
        content: What it wrote.
        path: Where it comes from, for errors.

    Raises:
        ValueError: If it is no report, or of a later schema.
    """
    try:
        fields = json.loads(content)
        kind = REPORTS[fields.pop("report")]
        version = fields.pop("schema_version")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"a report that tfquant wrote is expected. Received: '{path}', which is none"
        ) from error
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"a report of schema {SCHEMA_VERSION} is expected. Received: '{path}' of {version!r}"
        )
    try:
        report = _read(kind, fields)
        str(report)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"a report that tfquant wrote is expected. Received: '{path}', in which "
            f"{type(error).__name__}: {error}"
        ) from error
    return report


def _read(kind, fields):
    """Makes a dataclass of plain values."""
    layer = LayerReport if kind is ConversionReport else PackedLayerReport
    parts = {**PARTS, "layers": layer}
    read = {name: _value(parts.get(name), value) for name, value in fields.items()}
    return kind(**read)


def _value(kind, value):
    if isinstance(value, str) and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind is None or value is None:
        return value
    if isinstance(value, list):
        return [_read(kind, item) for item in value]
    if kind is ConversionReport:
        plain = {name: dict(fields) for name, fields in value.items()}
        return {name: _read(kind, _without_head(fields)) for name, fields in plain.items()}
    return _read(kind, value)


def _without_head(fields):
    known = {field.name for field in dataclasses.fields(ConversionReport)}
    return {name: value for name, value in fields.items() if name in known}
