"""Schemes: named settings for a whole model, as data."""

import dataclasses

from tfquant.numerics import QuantSpec


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How weights and activations of a model are stored and computed with.

    Attributes:
        name: `w<bits>a<bits>`, `w<bits>` for weights only, or the name of a format.
        weight_bits: Width of integer weights; `None` for half-precision weights.
        activation_bits: Width of integer activations; `None` when they stay float.
        dynamic: Whether activations are quantized when the model runs, row by row.
        summary: One line for tables.
    """

    name: str
    weight_bits: int | None
    activation_bits: int | None
    dynamic: bool = False
    summary: str = ""

    @property
    def static(self) -> bool:
        """Whether activations have grids that calibration sets."""
        return self.activation_bits is not None and not self.dynamic

    @property
    def activations(self) -> QuantSpec | None:
        """The grid of activations: asymmetric at 8 bits, symmetric at 16."""
        if self.activation_bits is None:
            return None
        wide = self.activation_bits > 8
        return QuantSpec(self.activation_bits, symmetric=wide, narrow_range=wide)

    def weights(self, granularity, minimum_bits: int = 0) -> QuantSpec | None:
        """The grid of weights: symmetric, without its lowest integer.

        Args:
            granularity: What shares a scale.
            minimum_bits: Narrowest width that the layer's integer kernel takes.
        """
        if self.weight_bits is None:
            return None
        bits = max(self.weight_bits, minimum_bits)
        return QuantSpec(bits, symmetric=True, narrow_range=True, granularity=granularity)


_TABLE = (
    Scheme("w8a8", 8, 8, summary="8-bit integers throughout"),
    Scheme("w8a16", 8, 16, summary="8-bit weights, 16-bit activations"),
    Scheme("w4a8", 4, 8, summary="4-bit weights, 8-bit activations"),
    Scheme("w8", 8, None, summary="8-bit weights, float arithmetic"),
    Scheme("w4", 4, None, summary="4-bit weights, float arithmetic"),
    Scheme("w8a8_dynamic", 8, 8, dynamic=True, summary="8-bit weights, activations at run time"),
    Scheme("f16", None, None, summary="half-precision weights, float arithmetic"),
)

SCHEMES = {scheme.name: scheme for scheme in _TABLE}


def get(identifier: str | Scheme) -> Scheme:
    """Returns the scheme of that name; a `Scheme` is returned as it is.

    Raises:
        ValueError: If no scheme has the name.
    """
    if isinstance(identifier, Scheme):
        return identifier
    if not isinstance(identifier, str) or identifier not in SCHEMES:
        raise ValueError(
            f"`scheme` must be one of {', '.join(SCHEMES)}, or a `Scheme`. "
            f"Received: {identifier!r}."
        )
    return SCHEMES[identifier]
