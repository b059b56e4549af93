"""What a device computes, and refuses: operators, widths, fixed grids, rounding."""

from tfquant.devices.device import EXACT, INPUTS, OWN, Device, Operator, Product, fixed_grid
from tfquant.devices.litert import LITERT
from tfquant.devices.litert_arm import LITERT_ARM
from tfquant.devices.litert_reference import LITERT_REFERENCE
from tfquant.devices.onnxruntime import ONNXRUNTIME
from tfquant.devices.tflm import TFLM

DEVICES = {d.name: d for d in (LITERT, LITERT_ARM, LITERT_REFERENCE, ONNXRUNTIME, TFLM)}


def here() -> str:
    """Returns the name of the device that stands for the processor at hand."""
    made_for_it = (d.name for d in DEVICES.values() if d.machines and d.runs_here())
    return next(made_for_it, "litert")


def get(name: str | Device | None) -> Device:
    """Returns the device of that name, `None` for that of the processor at hand.

    Raises:
        ValueError: If no device has the name.
    """
    if isinstance(name, Device):
        return name
    name = here() if name is None else name
    if name not in DEVICES:
        known = ", ".join(map(repr, DEVICES))
        raise ValueError(f"`device` must be one of {known}, or None. Received: {name!r}.")
    return DEVICES[name]


__all__ = [
    "DEVICES",
    "EXACT",
    "INPUTS",
    "OWN",
    "Device",
    "Operator",
    "Product",
    "fixed_grid",
    "get",
    "here",
]
