"""The report of a conversion: sizes, layers, and the proof that file and model agree."""

import dataclasses

from rich.text import Text

from tfquant.calibrate.samples import RANDOM
from tfquant.report.printable import Printable, notes, plain_table

# Integers that a part of a tensor has to itself: with fewer, little is left of it.
FEW_LEVELS = 8

# A comparison is bad where more than this share of values is apart by more than so many steps, real
# values by more than this share of the largest, fewer rows than this have the same largest output,
# or an output has more noise than this: in dB against the float model, half of its power.
APART_SHARE, APART_STEPS, APART = 0.5, 2, 0.05
LEAST_EQUAL, LEAST_SQNR = 0.9, 3.0

# How far sums in float may be apart that are added up in another order, relative to the largest.
SUMS = 1e-5

# Why what is computed in float and rounded to a grid may differ by a step.
ROUNDED = "float, rounded"

# What helps a part that the grid of a whole swallows.
HELP = (
    "give parts outputs of their own, `skip` the layer that joins them (it joins real numbers "
    "then), scale them alike before they are one tensor (a Normalization in front of a table runs "
    "in float), or use 16-bit activations (scheme='w8a16')"
)


@dataclasses.dataclass(frozen=True)
class Parity:
    """How two sets of integers, or of real values, agree.

    Attributes:
        values: Number of values compared.
        differing: Number of values that differ.
        largest: Largest difference: output steps where both are integers, else relative to the
            largest magnitude.
        rows: Number of inputs.
        equal_predictions: Share of inputs whose largest output is the same one; `None` where an
            output is no vector of scores.
        in_steps: Whether differences are counted in output steps.
        accuracies: `(expected, received)`: shares of rows whose largest output is the label;
            `None` without labels.
    """

    values: int
    differing: int
    largest: float
    rows: int = 0
    equal_predictions: float | None = None
    in_steps: bool = True
    accuracies: tuple[float, float] | None = None

    @property
    def share_differing(self) -> float:
        """Differing values as a share of all."""
        return self.differing / self.values if self.values else 0.0

    def __add__(self, other: "Parity") -> "Parity":
        return Parity(
            self.values + other.values,
            self.differing + other.differing,
            max(self.largest, other.largest),
            max(self.rows, other.rows),
            in_steps=self.in_steps and other.in_steps,
        )


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """An input or output of a file.

    Attributes:
        name: Its name in the signature.
        dtype: Type of its values, such as `"INT8"`.
        shape: Its shape; -1 is a free dimension.
        scale: Step of its grid; `None` where it has none.
        zero_point: Integer that stands for 0; `None` without a grid.
    """

    name: str
    dtype: str
    shape: list[int]
    scale: float | None = None
    zero_point: int | None = None


@dataclasses.dataclass(frozen=True)
class PartReport:
    """A part of a layer's output: a column of few, or one of the tensors that are concatenated.

    Attributes:
        name: `"column 2"`, or the layer that computes the part.
        levels: Number of integers between its smallest and its largest value in the float model;
            `None` where all values are the same.
        sqnr: Its signal to quantization noise ratio in dB, device against float model, or `None`.
    """

    name: str
    levels: int | None = None
    sqnr: float | None = None


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer of the file.

    Attributes:
        name: Name of the Keras layer.
        operator: Operator of the file that computes it.
        weight_bits: Width of its weights; `None` without weights.
        activation_bits: Width of its output, or of its inputs where it is `dynamic`; `None` when it
            is float.
        granularity: What shares a weight scale, such as `"16 channels"`, `"64 groups of 32"` or
            `"tensor"`.
        scale: `(smallest, largest)` weight scale, or `None`.
        weight_sqnr: Signal to quantization noise ratio of the weights in dB, or `None`.
        output_sqnr: The same for the output, device against float model on the samples, or `None`.
        weight_bytes: Bytes of its weights in the file; 0 without.
        dynamic: Whether its inputs are quantized when the file runs, to `activation_bits`; its
            output is float.
        parity: Keras simulation against device, fed the device's own inputs; `None` where the
            operator was not compared.
        arithmetic: `"exact"`, or the kind of kernel that may differ by one step.
        note: Why it has a scale per channel under a scheme of groups; empty where it is not so.
        parts: A `PartReport` for each tensor that it concatenates, or each column of its output
            where the last axis has few; empty where nothing was compared.
        swallowed: Names of those of which the grid of the whole leaves less than `FEW_LEVELS`
            levels, where a part has a meaning of its own: in inputs, outputs and concatenations.
    """

    name: str
    operator: str
    weight_bits: int | None = None
    activation_bits: int | None = None
    granularity: str | None = None
    scale: tuple[float, float] | None = None
    weight_sqnr: float | None = None
    output_sqnr: float | None = None
    parity: Parity | None = None
    arithmetic: str = "exact"
    note: str = ""
    parts: list[PartReport] = dataclasses.field(default_factory=list)
    swallowed: list[str] = dataclasses.field(default_factory=list)
    weight_bytes: int = 0
    dynamic: bool = False


@dataclasses.dataclass(frozen=True)
class FloatOperator:
    """An operator of the file that computes in float.

    Attributes:
        name: Name of its output.
        operator: Kind of operator.
        reason: Why it stayed float.
    """

    name: str
    operator: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ConversionReport(Printable):
    """What `to_tflite` did.

    Attributes:
        path: The file.
        float_bytes: Size of the same model in float32.
        quantized_bytes: Size of the file.
        layers: One `LayerReport` for each quantized layer, in order.
        float_operators: Operators that stayed float, with the reason.
        saturated_biases: Number of biases at the end of their integer range; 0 in a right file.
        end_to_end: `Parity` of the outputs, Keras against LiteRT, or `None` without verification.
        not_compared: Why file and model could not be compared; empty if they were, or nobody asked.
        samples: Where the inputs of the comparison came from.
        front_layers: Names and types of the model's layers that are not in the file: lookups, whose
            outputs are the file's inputs.
        lost_layers: Names of layers whose output has a range and was not found in the file.
        device: Name of the device that the model simulates.
        norms: Which norms compute in integers, and what it costs the outputs; empty where none
            could, or nobody knows.
        elsewhere: Operators of the file that round otherwise on other devices: a dict from their
            names.
        correction: What calibration made of the biases, and what outputs gained; empty where nobody
            knows, as of a model from a file.
        signatures: Reports of the further models in the file, by the key of their signature.
        output_sqnr: Dict from the names of outputs of real numbers to their signal to quantization
            noise ratio in dB, file against float model; empty where nothing was compared.
        inputs: A `TensorReport` for each input of the file.
        outputs: Likewise.
        provenance: What it was made with: `"recipe"`, `"calibration"` (observer, rows and a hash
            of the data), `"versions"` and `"seconds"`.
    """

    width = 160

    path: str
    float_bytes: int
    quantized_bytes: int
    layers: list[LayerReport]
    float_operators: list[FloatOperator]
    saturated_biases: int = 0
    end_to_end: Parity | None = None
    not_compared: str = ""
    samples: str = ""
    front_layers: dict[str, str] = dataclasses.field(default_factory=dict)
    lost_layers: list[str] = dataclasses.field(default_factory=list)
    device: str = "litert"
    norms: str = ""
    elsewhere: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    correction: str = ""
    signatures: dict[str, "ConversionReport"] = dataclasses.field(default_factory=dict)
    output_sqnr: dict[str, float | None] = dataclasses.field(default_factory=dict)
    inputs: list[TensorReport] = dataclasses.field(default_factory=list)
    outputs: list[TensorReport] = dataclasses.field(default_factory=list)
    provenance: dict = dataclasses.field(default_factory=dict)

    @property
    def broken_claims(self) -> list[str]:
        """Names of layers that are said to be exact, and differ in the comparison op by op.

        Real numbers may differ as sums in another order do, and where they are rounded to a grid
        behind it, by a step.
        """
        return [layer.name for layer in self.layers if _breaks_its_claim(layer)]

    @property
    def doubts(self) -> list[str]:
        """What the comparison found to be bad, a sentence each; empty where all is well."""
        found = [] if self.end_to_end is None else _doubts(self.end_to_end)
        found += [
            f"output '{name}' is mostly quantization noise: {ratio:.1f} dB against the float model"
            for name, ratio in self.output_sqnr.items()
            if ratio is not None and ratio < LEAST_SQNR
        ]
        if self.end_to_end is not None and self.samples == RANDOM:
            found.append(
                "the comparison ran on RANDOM INPUTS, not on data, and says little of real inputs: "
                "give to_tflite(samples=...)"
            )
        return found

    @property
    def swallowed(self) -> list[str]:
        """What the grids of whole tensors leave next to nothing of: a line for each layer."""
        return [_swallowed(layer) for layer in self.layers if layer.swallowed]

    @property
    def op_by_op(self) -> Parity | None:
        """All layers' parities together; `None` without verification."""
        parities = [layer.parity for layer in self.layers if layer.parity is not None]
        return sum(parities[1:], parities[0]) if parities else None

    def parts(self):
        """Yields tables and lines."""
        ratio = self.float_bytes / self.quantized_bytes
        yield _layer_table(self.layers)
        if any(layer.dynamic for layer in self.layers):
            yield Text("* inputs are quantized when the file runs, outputs are float")
        yield Text(
            f"{self.path}: {self.quantized_bytes:,} bytes, {ratio:.2f} times smaller than float "
            f"({self.float_bytes:,})"
        )
        if self.op_by_op is not None:
            yield Text(f"op by op:   {_in_words(self.op_by_op)}")
        if self.end_to_end is not None:
            yield Text(f"end to end: {_in_words(self.end_to_end)}, on {self.samples}")
        for doubt in self.doubts:
            yield Text(f"LOOK AT THIS: {doubt}", style="bold red")
        if self.not_compared:
            yield Text(f"NOT COMPARED with the model: {self.not_compared}", style="bold red")
        elif self.end_to_end is None:
            yield Text(f"not compared with {self.device}")
        for name, operators in self.elsewhere.items():
            yield Text(f"round otherwise on device='{name}': {', '.join(operators)}")
        if self.broken_claims:
            named = ", ".join(f"'{name}'" for name in self.broken_claims)
            yield Text(f"SAID TO BE EXACT, AND DIFFER: {named}", style="bold red")
        for line in self.swallowed:
            yield Text(f"SWALLOWED: {line}", style="bold red")
        if self.swallowed:
            yield Text(f"what helps: {HELP}")
        if self.correction:
            yield Text(f"biases corrected: {self.correction}")
        if self.front_layers:
            named = ", ".join(f"'{name}' ({kind})" for name, kind in self.front_layers.items())
            yield Text(f"not in the file, run before it: {named}")
        if self.norms:
            yield Text(f"norms: {self.norms}")
        yield from _float_lines(self.float_operators)
        if self.lost_layers:
            named = ", ".join(f"'{name}'" for name in self.lost_layers)
            yield Text(f"not found in the file, so that their ranges are not in it: {named}")
        yield from notes(self.layers, "operator")
        if self.saturated_biases:
            yield Text(f"SATURATED BIASES: {self.saturated_biases}", style="bold red")
        for key, report in self.signatures.items():
            yield Text(f"\nsignature '{key}', {report.quantized_bytes:,} bytes alone:")
            yield from report.parts()


def _breaks_its_claim(layer):
    parity = layer.parity
    if parity is None or layer.arithmetic not in ("exact", ROUNDED):
        return False
    if not parity.in_steps:
        return parity.largest > SUMS
    return bool(parity.differing) if layer.arithmetic == "exact" else parity.largest > 1


def _doubts(parity):
    """Says in words what is bad about a comparison of outputs."""
    found = []
    share, largest = parity.share_differing, parity.largest
    if parity.in_steps and share > APART_SHARE and largest > APART_STEPS:
        found.append(
            f"file and model are apart in {share:.0%} of the output values, by up to "
            f"{largest:g} steps"
        )
    if not parity.in_steps and not largest <= APART:
        found.append(
            f"file and model are apart by up to {largest:.2g} times the largest output value"
        )
    if parity.equal_predictions is not None and parity.equal_predictions < LEAST_EQUAL:
        found.append(f"file and model predict the same for {parity.equal_predictions:.0%} of rows")
    return found


def _swallowed(layer):
    """Names the parts of a layer's output that have few levels."""
    parts = [part for part in layer.parts if part.name in layer.swallowed]
    noise = [("" if p.sqnr is None else f", {p.sqnr:.1f} dB") for p in parts]
    named = [f"{p.name} (levels: {p.levels}{more})" for p, more in zip(parts, noise, strict=True)]
    return f"{', '.join(named)} of layer '{layer.name}'"


def _float_lines(operators):
    """Names what stayed float, a line for each reason."""
    by_reason = {}
    for operator in operators:
        by_reason.setdefault(operator.reason, []).append(operator)
    for reason, group in by_reason.items():
        named = ", ".join(f"{operator.operator} {operator.name}" for operator in group[:3])
        more = f" and {len(group) - 3} more" if len(group) > 3 else ""
        yield Text(f"float: {named}{more}: {reason}")


def _layer_table(layers):
    table = plain_table()
    for name, justify in (
        ("layer", "left"),
        ("operator", "left"),
        ("bits w/a", "right"),
        ("bytes", "right"),
        ("scales", "left"),
        ("weight dB", "right"),
        ("output dB", "right"),
        ("apart", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)
    for layer in layers:
        table.add_row(
            layer.name,
            layer.operator,
            f"{layer.weight_bits or '-'}/{layer.activation_bits or '-'}{'*' * layer.dynamic}",
            f"{layer.weight_bytes:,}" if layer.weight_bytes else "",
            _scales(layer),
            _decibels(layer.weight_sqnr),
            _decibels(layer.output_sqnr),
            _steps(layer),
        )
    return table


def _scales(layer):
    if layer.scale is None:
        return ""
    low, high = layer.scale
    return f"{layer.granularity}, {low:.1g} to {high:.1g}"


def _decibels(value):
    if value is None:
        return ""
    return "exact" if value >= 200 else f"{value:.1f}"


def _steps(layer):
    parity = layer.parity
    if parity is None:
        return ""
    note = "" if layer.arithmetic == "exact" else f" ({layer.arithmetic})"
    if not parity.in_steps:
        return f"{parity.largest:.0e} rel.{note}"
    if not parity.differing:
        return f"0{note}"
    return f"{parity.largest:g} in {parity.differing:,} of {parity.values:,}{note}"


def _in_words(parity):
    if parity.in_steps:
        words = f"{parity.differing:,} of {parity.values:,} values differ"
        if parity.differing:
            words += f", by at most {parity.largest:g} steps"
    else:
        words = f"{parity.values:,} values, {parity.largest:.1e} apart at most"
    if parity.equal_predictions is not None:
        words += f"; {parity.equal_predictions:.2%} equal predictions"
    return words
