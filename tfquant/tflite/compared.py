"""Whether a file does what its model does, and where it does not."""

import dataclasses

from tfquant.report import ROUNDED, LayerReport, Parity
from tfquant.tflite import parts

# Few rows are compared op by op. Of the others an operator may round a tie the other way, which is
# several steps behind a recurrent layer; a wrong tensor or grid is more of both.
SHARE, STEPS = 0.5, 8


@dataclasses.dataclass(frozen=True)
class Compared:
    """What came of a comparison.

    Attributes:
        layers: One `LayerReport` for each unit.
        end_to_end: `Parity` of the outputs, `None` if they were not compared.
        why_not: Why they were not, where they should have been.
        parted: Where the file and the model part; empty if they do not.
        output_sqnr: Noise of each output in dB, or `None`; empty if they were not compared.
    """

    layers: list[LayerReport]
    end_to_end: Parity | None = None
    why_not: str = ""
    parted: str = ""
    output_sqnr: list[float | None] = dataclasses.field(default_factory=list)


def compare_all(begin, units, described, all_integer: bool) -> Compared:
    """Compares a file with its model, op by op and end to end.

    A fault in here costs nobody a file: it says nothing about the file.

    Args:
        begin: Function that returns a `Verifier`.
        units: The `LoweredUnit`s.
        described: What is known of each of them already, `LayerReport`s.
        all_integer: Whether no operator of the file computes in float.
    """
    try:
        verifier = begin()
        ends = parts.ends(verifier.lowered)
        layers = [
            dataclasses.replace(
                layer,
                output_sqnr=verifier.unit_sqnr(unit),
                parity=verifier.unit(unit),
                parts=(found := verifier.parts(unit)),
                swallowed=parts.swallowed(found) if unit in ends else [],
            )
            for layer, unit in zip(described, units, strict=True)
        ]
        end_to_end, output_sqnr = verifier.end_to_end(), verifier.output_sqnr()
        parted = _parted(verifier, layers, end_to_end, all_integer)
    except Exception as error:
        why_not = f"{type(error).__name__}: {error}"
        return Compared(described, why_not=why_not)
    return Compared(layers, end_to_end, parted=parted, output_sqnr=output_sqnr)


def _parted(verifier, layers, end_to_end, all_integer):
    """Returns where file and model part: at an exact operator, or though all are right."""
    if not end_to_end.differing or not end_to_end.in_steps:
        return ""
    name = verifier.parting([layer.parity for layer in layers])
    if name is not None:
        return f"layer '{name}'"
    exact = [layer for layer in layers if layer.arithmetic in ("exact", ROUNDED)]
    fed = {layer.name: layer.parity for layer in exact if layer.parity is not None}
    own = {unit.name: parity for unit, parity in verifier.own.items()}
    for name in [layer.name for layer in exact]:
        if any(_is_wrong(found[name]) for found in (own, fed) if name in found):
            return f"layer '{name}'"
    right = all_integer and exact == layers and not any(p.differing for p in fed.values())
    return "the outputs" if right and _is_wrong(end_to_end) else ""


def _is_wrong(parity):
    """Whether values are apart by more than rounding."""
    return parity.in_steps and parity.share_differing > SHARE and parity.largest > STEPS
