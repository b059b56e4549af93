"""What the report says of each layer, of what runs in integers, and of what does not."""

import platform

import numpy as np

from tfquant import devices
from tfquant.configs.elementwise import AverageConfig, OutputConfig, ResizeConfig
from tfquant.configs.linear import LinearConfig, unit_product
from tfquant.nodes.graph import Written
from tfquant.numerics import QuantSpec
from tfquant.onnx.run import EXACTLY, MOVING, Session, computes, is_integer
from tfquant.onnx.verify import Verifier
from tfquant.quantizers import grid_of
from tfquant.report import FloatOperator, LayerReport, OnnxReport
from tfquant.report.weights import weight_fields
from tfquant.wrappers import Quantize

RUNTIME = devices.get("onnxruntime")

# What happens without a setting of a session.
WITHOUT = {
    "session.x64quantprecision": (
        f"on this processor ({platform.machine()}) ONNX Runtime's sums of 8-bit products saturate, "
        "as they do without VNNI; 7-bit weights, tfq.Scheme('w7a8', 7, 8), would not"
    ),
    "session.qdq_matmulnbits_accuracy_level": (
        "ONNX Runtime rounds real activations to 8 bits in MatMulNBits"
    ),
}

# A rounded tie is one step, and few are ties; what is more of both is no rounding.
SHARE, STEPS = 0.5, 8

# Real values may be this far apart, relative to the largest: integers that a device finds when it
# runs, which the file does not.
RELATIVE = 0.2

# Operators that only bring what a kernel computed into another form.
_FORMS = frozenset(
    {"Clip", "Identity", "QuantizeLinear", "Relu", "Reshape", "Squeeze", "Sub", "Transpose"}
)


def layer_reports(written: Written, verifier: Verifier, lowered, verify) -> list[LayerReport]:
    """Describes each unit.

    Args:
        written: `Written`.
        verifier: `Verifier`.
        lowered: `Lowered`.
        verify: Whether to compare them.
    """
    producers = {name: n for n in verifier.inner.optimized.node for name in n.output}
    noise = verifier.noise() if verify else {}
    found = []
    for number, unit in written.units.items():
        x = written.runner.calls[number].flat_outputs[0]
        value = written.values[x]
        node = _kernel(producers, _tensor(written, number))
        operator = "-" if node is None else node.op_type
        found.append(
            LayerReport(
                name=unit.name,
                operator=operator,
                activation_bits=value.step.bits if value.step else None,
                arithmetic=_arithmetic(operator, lowered.device),
                output_sqnr=noise.get(number),
                parity=verifier.unit(number) if verify else None,
                **weight_fields(unit),
            )
        )
    return found


def _tensor(written, number):
    """Returns the name of what a unit computes."""
    value = written.values[written.runner.calls[number].flat_outputs[0]]
    return value.real if value.q is None else value.q


def _kernel(producers, name):
    """Returns the node of the optimised graph that computes a tensor."""
    node = producers.get(name)
    while node is not None and node.op_type in _FORMS and node.input[0] in producers:
        before = producers[node.input[0]]
        if before.op_type == "DequantizeLinear" and node.op_type == "QuantizeLinear":
            return node
        node = before
    return node


def _arithmetic(operator, device):
    """Returns `"exact"`, or why Keras and ONNX Runtime may differ."""
    if device is not RUNTIME:
        return device.name
    exact = operator in MOVING or (is_integer(operator) and operator != "MatMulNBits")
    return devices.EXACT if exact else "float"


def integer_operators(session: Session) -> dict[str, int]:
    """Counts the operators of integers in the optimised graph."""
    return {name: n for name, n in sorted(session.counts.items()) if is_integer(name)}


def float_operators(written: Written, verifier: Verifier) -> list[FloatOperator]:
    """Describes what the optimised graph computes in float.

    It is that of the graph that returns what the units compute, which has their names.
    """
    graph = verifier.inner.optimized
    units = {_tensor(written, number): unit for number, unit in written.units.items()}
    readers = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in graph.node:
        if not computes(node.op_type):
            continue
        unit = units.get(_reached(node, readers, units))
        name = node.output[0] if unit is None else unit.name
        found.append(FloatOperator(name, node.op_type, _reason(node.op_type, unit)))
    return found


def _reached(node, readers, units):
    """Returns the tensor of the unit that a node computes for, else its own.

    It ends at the first grid behind the node.
    """
    front, seen = [node], set()
    while front:
        step = front.pop(0)
        found = next((name for name in step.output if name in units), None)
        if found is not None:
            return found
        followers = [n for name in step.output for n in readers.get(name, [])]
        if step.op_type == "QuantizeLinear":
            followers = [n for n in followers if n.op_type in _FORMS]
        front += [n for n in followers if id(n) not in seen]
        seen.update(id(n) for n in followers)
    return node.output[0]


def _reason(operator, unit):
    if unit is None:
        return "no layer that is quantized"
    config = getattr(unit.layer, "quantize_config", None)
    if unit.dynamic:
        return "the file does not quantize activations at run time, as the scheme does elsewhere"
    if not isinstance(config, LinearConfig):
        return "ONNX Runtime has no operator of integers for it"
    grid = grid_of(unit.inputs[0]) if unit.inputs else None
    if grid is None or grid_of(unit.outputs[0]) is None:
        return "the scheme keeps activations float"
    if grid.spec.stored_bits > 8:
        return "ONNX Runtime multiplies 16-bit activations in float"
    if isinstance(config.weights, QuantSpec) and config.weights.num_bits <= 4:
        return (
            "ONNX Runtime has no product of 4-bit weights and 8-bit activations: they make the "
            "file small, and compute in float"
        )
    return f"ONNX Runtime has no operator of integers for {operator}"


def differences(lowered) -> dict[str, list[str]]:
    """Returns what ONNX Runtime rounds otherwise than the device that the model simulates."""
    device = lowered.device
    if device is RUNTIME:
        return {}
    found = {_named(unit, device) for unit in lowered.units} - {None}
    return {RUNTIME.name: sorted(found)} if found else {}


def _named(unit, device):
    """Returns what a unit computes, where the devices differ in it, or `None`."""
    config, grid = getattr(unit.layer, "quantize_config", None), grid_of(unit.outputs[0])
    if grid is None:
        return None
    bits = grid.spec.stored_bits
    if isinstance(config, LinearConfig):
        if not unit.inputs or grid_of(unit.inputs[0]) is None:
            return None
        product = unit_product(unit)
        differs = device.rounding(product) != RUNTIME.rounding(product)
        return f"INT{bits} {config.operator}" if differs else None
    operator = _operator(unit, config)
    return f"INT{bits} {operator}" if operator and device.differs(RUNTIME, operator, bits) else None


def _operator(unit, config):
    if isinstance(unit.layer, Quantize):
        again = unit.outputs[0] is not unit.inputs[0]
        return "QUANTIZE" if again and grid_of(unit.inputs[0]) is not None else None
    if isinstance(config, AverageConfig):
        return "AVERAGE_POOL_2D"
    if isinstance(config, ResizeConfig):
        return "RESIZE_BILINEAR" if unit.layer.layer.interpolation == "bilinear" else None
    return config.operator if isinstance(config, OutputConfig) else None


def remarks(lowered, layers, verifier: Verifier, content, session: Session) -> list[str]:
    """Says what else is to be known of running the file."""
    found = []
    if lowered.device is not RUNTIME:
        found.append(
            f"the model simulates {lowered.device.name}: device='onnxruntime' rounds as ONNX "
            "Runtime does"
        )
    kernels = [layer for layer in layers if layer.weight_bits is not None]
    narrow = any(x.weight_bits <= 4 and x.activation_bits == 8 for x in kernels)
    if narrow:
        found.append(
            "ONNX Runtime computes 4-bit weights with 8-bit activations in float: a smaller file, "
            "and no faster one; scheme='w8a8' runs in integers"
        )
    for setting, why in WITHOUT.items():
        apart = _apart(verifier, content, session, setting)
        if apart:
            found.append(
                f"{why}, and {apart}: set {setting} to '{EXACTLY[setting]}', as in this comparison"
            )
    return found


def _apart(verifier, content, session, setting):
    """Says how far outputs are apart without a setting; nothing if they are not."""
    rows = verifier.feed(verifier.few)
    pairs = list(zip(Session(content, setting)(rows), session(rows), strict=True))
    differing = sum(int((a != b).sum()) for a, b in pairs)
    values = sum(np.size(a) for a, _ in pairs)
    return f"{differing:,} of {values:,} outputs differ" if differing else ""


def wrong(report: OnnxReport) -> str:
    """Returns where a file computes something else than its model; nothing if nowhere."""
    for layer in report.layers:
        if layer.parity is not None and _is_wrong(layer.parity):
            return f"layer '{layer.name}'"
    exact = report.device == RUNTIME.name and not report.float_operators
    return "the outputs" if exact and _is_wrong(report.end_to_end) else ""


def _is_wrong(parity):
    """Whether values are apart by more than rounding."""
    if not parity.in_steps:
        return parity.largest > RELATIVE
    return parity.share_differing > SHARE or (
        parity.largest > STEPS and parity.share_differing > 1e-3
    )
