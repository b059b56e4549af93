"""`litert`: LiteRT on a CPU, with XNNPACK."""

from tfquant.litert import interpreter
from tfquant.litert.flatbuffer import File
from tfquant.targets.target import REAL_TYPES, Proof, Target


def prove(content: bytes) -> Proof:
    """Has LiteRT load the file and run it on zeros."""
    refused = interpreter.first_refused(File(content), content)
    return Proof.by_running("LiteRT", refused)


LITERT = Target(
    "litert",
    "LiteRT",
    "it loads the file and runs it on zeros, on this processor",
    operators=None,
    activations=REAL_TYPES,
    weights=REAL_TYPES,
    elsewhere="the file does not run",
    prove=prove,
)
