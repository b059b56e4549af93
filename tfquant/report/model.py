"""`summarize`: the layers of a Keras model, float or quantized, with bits and sizes."""

import dataclasses
import math

import keras
import numpy as np
from rich.text import Text

from tfquant.configs.linear import LinearConfig
from tfquant.graph.walk import leaves
from tfquant.lowbit.layers import PackedEmbedding, PackedLayer
from tfquant.numerics import PerGroup, PerTensor
from tfquant.quantizers import Float16
from tfquant.report.printable import Printable, plain_table
from tfquant.wrappers import (
    DynamicKernel,
    IntegerKernel,
    OperationLayer,
    Quantize,
    QuantizeWrapper,
)
from tfquant.wrappers.norms import norms_in_words


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer of a model.

    Attributes:
        name: Name of the layer; of the wrapped one, if it is wrapped.
        kind: Its type.
        parameters: Number of values in its variables, those of a folded batch norm included.
        num_bytes: Bytes that the values take at the widths below; 4 for each value of a bias.
        weight_bits: Width of its quantized weights, 32 for float ones, `None` without weights.
        activation_bits: Width of its output, or of inputs that it quantizes when it runs; `None`
            where it is float or the grid of its input.
        granularity: What shares a weight scale; `None` for float weights.
        calibrated: Whether its output has a grid; `None` without a quantized output.
    """

    name: str
    kind: str
    parameters: int
    num_bytes: int
    weight_bits: int | None = None
    activation_bits: int | None = None
    granularity: str | None = None
    calibrated: bool | None = None


@dataclasses.dataclass(frozen=True)
class ModelSummary(Printable):
    """The layers of a model.

    Attributes:
        name: Name of the model.
        layers: One `LayerSummary` for each layer, those of nested models included.
        correction: How calibration corrected biases; empty where it did not, or nobody knows.
        norms: Which norms compute in integers, and what it costs; empty where none could, or nobody
            knows.
    """

    name: str
    layers: list[LayerSummary]
    correction: str = ""
    norms: str = ""

    @property
    def parameters(self) -> int:
        """Number of values in all variables."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def num_bytes(self) -> int:
        """Bytes that they take at the widths of their layers."""
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def state(self) -> str:
        """`"float"`, `"quantized"`, or `"quantized, not calibrated"`."""
        outputs = [layer.calibrated for layer in self.layers if layer.calibrated is not None]
        if outputs:
            return "quantized" if all(outputs) else "quantized, not calibrated"
        return "quantized" if any(layer.granularity for layer in self.layers) else "float"

    def parts(self):
        """Yields tables and lines."""
        table = plain_table()
        for name in ("layer", "type"):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for name in ("bits w/a", "parameters", "bytes"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("scales", no_wrap=True)
        for layer in self.layers:
            table.add_row(
                Text(layer.name),
                layer.kind,
                f"{layer.weight_bits or '-'}/{layer.activation_bits or '-'}",
                f"{layer.parameters:,}" if layer.parameters else "",
                f"{layer.num_bytes:,}" if layer.num_bytes else "",
                layer.granularity or "",
            )
        yield table
        yield Text(
            f"{self.name}: {self.state}, {self.parameters:,} parameters, {self.num_bytes:,} bytes "
            "of weights at these widths"
        )
        if self.correction:
            yield Text(f"biases corrected: {self.correction}")
        if self.norms:
            yield Text(f"norms: {self.norms}")


def summarize(model) -> ModelSummary:
    """Reads the layers of a model and with how many bits they compute.

    Args:
        model: Keras model, float or from `quantize_model`.

    Returns:
        `ModelSummary`; print it.

    Raises:
        TypeError: If it is no Keras model.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"A Keras model is expected. Received: {type(model).__module__}.{type(model).__name__}."
        )
    correction = str(getattr(model, "correction", "") or "")
    layers = [_summary(layer) for layer in leaves(model)]
    return ModelSummary(model.name, layers, correction, norms_in_words(model))


def _summary(layer) -> LayerSummary:
    if isinstance(layer, Quantize):
        bits, calibrated = layer.quantizer.spec.num_bits, layer.quantizer.calibrated
        return LayerSummary(layer.name, "Quantize", 0, 0, None, bits, calibrated=calibrated)
    if isinstance(layer, QuantizeWrapper):
        return _wrapped(layer)
    if isinstance(layer, (DynamicKernel, IntegerKernel, PackedLayer, PackedEmbedding)):
        return _packed(layer)
    count = sum(_size(v) for v in _values(layer))
    bits = 32 if count else None
    return LayerSummary(layer.name, type(layer).__name__, count, 4 * count, bits)


def _wrapped(wrapper) -> LayerSummary:
    """Describes a wrapped layer as the device stores it: its batch norm is part of the bias."""
    inner = wrapper.layer
    named = inner.operation if isinstance(inner, OperationLayer) else inner
    parts = [inner] if wrapper.batch_norm is None else [inner, wrapper.batch_norm]
    count = sum(_size(v) for part in parts for v in _values(part))
    quantized = wrapper.weight_quantizers
    narrow = sum(_size(variable) * _bits(quantizer) for variable, quantizer in quantized)
    float_count = sum(_size(v) for v in _values(inner)) - sum(_size(v) for v, _ in quantized)
    if wrapper.batch_norm is not None:
        float_count = _size(wrapper.batch_norm.moving_mean)
    config = wrapper.quantize_config
    rounds = config.input_quantizer(wrapper) if isinstance(config, LinearConfig) else None
    outputs = [q for quantizers in wrapper.output_quantizers for q in quantizers if q is not None]
    return LayerSummary(
        name=inner.name,
        kind=type(named).__name__,
        parameters=count,
        num_bytes=(narrow + 7) // 8 + 4 * float_count,
        weight_bits=max((_bits(q) for _, q in quantized), default=32 if count else None),
        activation_bits=max(
            (q.spec.num_bits for q in outputs), default=rounds and rounds.spec.num_bits
        ),
        granularity=", ".join(_granularity(v, q) for v, q in quantized) or None,
        calibrated=all(q.calibrated for q in outputs) if outputs else None,
    )


def _packed(layer) -> LayerSummary:
    """Describes a layer of `to_packed`."""
    inner, bits = layer, None
    if isinstance(layer, IntegerKernel):
        inner, widths = layer.layer, [s.output_spec.num_bits for s in layer.sites if s.output_spec]
        bits = max(widths, default=None)
    if isinstance(layer, DynamicKernel):
        inner = layer.layer
    if isinstance(inner, PackedEmbedding):
        count = inner.input_dim * inner.output_dim
        kind, scales = "channel" if inner.shared_scale else "row", _size(inner.scale)
        granularity = "per tensor" if scales == 1 else f"per {kind} ({scales})"
    elif isinstance(inner, PackedLayer):
        count = inner.depth * inner.units
        granularity = f"per channel ({inner.units})"
        if inner.group_size:
            granularity = f"per group of {inner.group_size}"
    else:
        count, granularity = sum(_size(v) for v in inner.weights), None
    num_bytes = sum(_size(v) * np.dtype(v.dtype).itemsize for v in layer.weights)
    width = getattr(inner, "num_bits", 32)
    name = type(inner).__name__
    return LayerSummary(layer.name, name, count, num_bytes, width, bits, granularity, bits and True)


def _values(layer):
    """Returns the variables of a layer that hold numbers of the model, not the state of a seed."""
    return [v for v in layer.weights if keras.backend.is_float_dtype(v.dtype)]


def _size(variable):
    return math.prod(variable.shape)


def _bits(quantizer):
    return 16 if isinstance(quantizer, Float16) else quantizer.spec.num_bits


def _granularity(variable, quantizer):
    if isinstance(quantizer, Float16):
        return "half precision"
    granularity = quantizer.spec.granularity
    if isinstance(granularity, PerTensor):
        return "per tensor"
    if isinstance(granularity, PerGroup):
        return f"per group of {granularity.group_size}"
    channels = math.prod(variable.shape[axis] for axis in granularity.axes)
    return f"per channel ({channels})"
