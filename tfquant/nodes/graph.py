"""A quantized model, call by call, as a graph of ONNX."""

import dataclasses

import keras
import numpy as np
from keras import tree

from tfquant.graph.graph import UniqueNames
from tfquant.graph.runner import Runner
from tfquant.nodes import functions, kernels, moves, pools  # Each fills the table of rows.
from tfquant.nodes.site import Site, row_of
from tfquant.nodes.writer import Step, Value, Writer
from tfquant.quantizers import grid_of
from tfquant.rewrite.lower import Lowered
from tfquant.wrappers import Quantize, QuantizeWrapper

FAMILIES = functions, kernels, moves, pools

_TYPES = {"float16": "float32", "bfloat16": "float32"}


@dataclasses.dataclass(eq=False)
class Written:
    """A graph, and which tensor of it is which of the model's.

    Attributes:
        model: `onnx.ModelProto`.
        runner: `Runner` of the quantized model.
        units: Dict from the number of a call to its `LoweredUnit`.
        values: Dict from a KerasTensor of the runner to its `Value`.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
    """

    model: object
    runner: Runner
    units: dict
    values: dict
    inputs: list[str]
    outputs: list[str]


def quantizes(layer) -> bool:
    """Whether a layer is one of the units of a lowered model."""
    return isinstance(layer, (Quantize, QuantizeWrapper)) and layer.quantizes


def write(model, lowered: Lowered, producer: str) -> Written:
    """Writes a graph.

    Args:
        model: Quantized functional model, of which no layer is a model.
        lowered: What it was lowered to.
        producer: Name of who wrote it.

    Raises:
        ValueError: If there is a layer that no row is for, or one in a form that none is for.
    """
    runner = Runner(model)
    _check_known(runner)
    writer, units, remaining = Writer(), {}, iter(lowered.units)
    names = [writer.name(x.name) for x in model.inputs]
    values = {x: _input(x, name) for x, name in zip(runner.inputs, names, strict=True)}
    unique = UniqueNames()
    for number, call in enumerate(runner.calls):
        unit = next(remaining) if quantizes(call.layer) else None
        if unit is not None:
            units[number] = unit
        for x, value in zip(
            call.flat_outputs, _written(writer, call, unit, values, unique), strict=True
        ):
            values[x] = value
    outputs = [
        _output(writer, values[x], name)
        for x, name in zip(runner.ends, model.output_names, strict=True)
    ]
    ends = [
        _info(writer, names, runner.inputs),
        _info(writer, outputs, runner.ends),
    ]
    return Written(writer.to_model(*ends, producer), runner, units, values, names, outputs)


def _check_known(runner):
    unknown = {}
    for call in runner.calls:
        layer = _inner(call.layer)
        if not isinstance(layer, Quantize) and row_of(layer) is None:
            name = getattr(layer, "operation", layer)
            unknown[f"'{layer.name}'"] = type(name).__name__
    if unknown:
        named = ", ".join(f"{name} ({kind})" for name, kind in unknown.items())
        raise ValueError(
            "Layers that tfquant writes as ONNX are expected; nothing was written. "
            f"Received: {named}. tfq.to_tflite converts any layer."
        )


def _inner(layer):
    return layer.layer if isinstance(layer, QuantizeWrapper) else layer


def _input(x, name):
    dtype = _TYPES.get(x.dtype, x.dtype)
    return Value(tuple(x.shape), real=name, dtype=dtype)


def _written(writer, call, unit, values, unique):
    """Writes one call; returns the `Value` of each output."""
    value = lambda x: values[x] if isinstance(x, keras.KerasTensor) else x  # noqa: E731
    args, kwargs = tree.map_structure(value, (call.args, call.kwargs))
    if all(x is None for x in tree.flatten(kwargs.get("mask"))):
        kwargs.pop("mask", None)
    layer = _inner(call.layer)
    name = unit.name if unit is not None else unique(f"float/{layer.name}")
    site = Site(writer, layer, args, kwargs, call.flat_outputs, unit, name)
    if isinstance(layer, Quantize):
        return [_quantized(site)] if unit is not None else [site.x]
    try:
        found = row_of(layer)(site)
    except (AttributeError, IndexError, TypeError, KeyError) as error:
        raise ValueError(
            f"Layer '{layer.name}' ({type(layer).__name__}) is called in a form that tfquant does "
            f"not write as ONNX; nothing was written. {type(error).__name__}: {error}"
        ) from error
    if isinstance(found, list):
        return found
    found = site.on_grid(found)
    found.done, found.dtype = False, _TYPES.get(site.outputs[0].dtype, site.outputs[0].dtype)
    return [found]


def _quantized(site):
    """Brings a tensor to a grid, or from one to another."""
    step = Step.of(grid_of(site.unit.outputs[0]))
    if site.x.step is not None and site.x.step.same(step):
        return site.x
    return site.writer.quantize(site.x, step, site.name)


def _output(writer, value, name):
    """Returns the name of an output, of channels last and real."""
    value = writer.layout(value, False)
    real = writer.real(value)
    return writer.add("Identity", [real], writer.name(name))


def _info(writer, names, tensors):
    helper = writer.onnx.helper
    found = []
    for name, x in zip(names, tensors, strict=True):
        dtype = _TYPES.get(x.dtype, x.dtype)
        if dtype == "string":
            raise ValueError(f"Inputs of numbers are expected. Received: '{name}', of strings.")
        shape = [_axis(n, i, name) for i, n in enumerate(x.shape)]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        found.append(helper.make_tensor_value_info(name, kind, shape))
    return found


def _axis(length, number, name):
    if length is not None:
        return length
    return "batch" if number == 0 else f"{name}_{number}"
