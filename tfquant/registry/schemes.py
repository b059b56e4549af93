"""Schemes: named settings for a whole model, as data."""

import dataclasses

from tfquant.numerics import QuantSpec
from tfquant.numerics.packing import GROUP_SIZES
from tfquant.quantizers.families import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, check

# Widths of integers that there are kernels for: LiteRT stores 2 and 3 bits of weights in 4, and
# activations of 9 to 15 bits in 16.
WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = range(2, 17)
DYNAMIC_BITS = range(8, 9)

# What becomes of norms: calibration weighs both forms, or one is taken whatever it costs.
NORMS = ("auto", "integer", "float")


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How weights and activations of a model are stored and computed with.

    Attributes:
        name: `w<bits>a<bits>`, `w<bits>` for weights only, each with `_g<group>` where groups share
            a scale, or the name of a format.
        weight_bits: Width of integer weights; `None` for half-precision weights.
        activation_bits: Width of integer activations; `None` when they stay float.
        dynamic: Whether activations are quantized when the model runs, row by row.
        group_size: Number of inputs of a channel whose weights share a scale: 32, 64 or 128; 0 for
            all of them. Kernels that it does not divide have a scale for each channel.
        edge_weight_bits: Width of the weights of the first and the last layer that has any, which
            suffer most; `None` for the width of all others.
        weight_quantizer: Family of weight grids: a name of `tfq.quantizers.WEIGHT_QUANTIZERS`.
        activation_quantizer: Family of activation grids: a name of
            `tfq.quantizers.ACTIVATION_QUANTIZERS`.
        norms: What becomes of layer, root mean square and group norms where activations have grids:
            a name of `NORMS`.
        summary: One line for tables.
        device: Name of the device that says which operators there are; `None` for that of the
            processor at hand.

    Raises:
        ValueError: If a width is none that there are kernels for, a family, a size of groups or a
            form of norms is unknown, or half-precision weights have groups or integer activations.
    """

    name: str
    weight_bits: int | None
    activation_bits: int | None
    dynamic: bool = False
    group_size: int = 0
    edge_weight_bits: int | None = None
    weight_quantizer: str = "abs_max"
    activation_quantizer: str = "moving_average"
    norms: str = "auto"
    summary: str = dataclasses.field(default="", compare=False)
    device: str | None = None

    def __post_init__(self):
        _check_width("weight_bits", self.weight_bits, WEIGHT_BITS, "half precision")
        _check_width("edge_weight_bits", self.edge_weight_bits, WEIGHT_BITS, "that of the others")
        bits = DYNAMIC_BITS if self.dynamic else ACTIVATION_BITS
        none = None if self.dynamic else "float"
        _check_width("activation_bits", self.activation_bits, bits, none)
        self._check_half_precision()
        check(WEIGHT_QUANTIZERS, "weight_quantizer", self.weight_quantizer)
        check(ACTIVATION_QUANTIZERS, "activation_quantizer", self.activation_quantizer)
        if self.norms not in NORMS:
            raise ValueError(
                f"`norms` must be one of {', '.join(NORMS)}. Received: {self.norms!r}."
            )
        if self.group_size not in GROUP_SIZES:
            raise ValueError(
                "`group_size` must be 32, 64, 128 or 0 (per channel). "
                f"Received: group_size={self.group_size!r}."
            )

    def _check_half_precision(self):
        if self.weight_bits is not None:
            return
        if self.group_size:
            raise ValueError(
                "Half-precision weights have no scales, and no groups. "
                f"Received: group_size={self.group_size}."
            )
        for name in ("activation_bits", "edge_weight_bits"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` must be None where weights have half precision. "
                    f"Received: {name}={getattr(self, name)}, weight_bits=None."
                )

    @property
    def edge(self) -> "Scheme":
        """The scheme of the first and the last layer."""
        if self.edge_weight_bits is None:
            return self
        return dataclasses.replace(self, weight_bits=self.edge_weight_bits, edge_weight_bits=None)

    @property
    def static(self) -> bool:
        """Whether activations have grids that calibration sets."""
        return self.activation_bits is not None and not self.dynamic

    @property
    def activations(self) -> QuantSpec | None:
        """The grid of activations: asymmetric at 8 bits, symmetric at 16."""
        if self.activation_bits is None:
            return None
        return QuantSpec(self.activation_bits, symmetric=self.activation_bits > 8)

    def weights(self, granularity, minimum_bits: int = 0) -> QuantSpec | None:
        """The grid of weights: symmetric, without its lowest integer but where each counts: 2 bits.

        Args:
            granularity: What shares a scale.
            minimum_bits: Narrowest width that the layer's integer kernel takes; 2 and 3 bits are
                stored in 4.
        """
        if self.weight_bits is None:
            return None
        bits = max(self.weight_bits, minimum_bits)
        return QuantSpec(bits, symmetric=True, narrow_range=bits > 2, granularity=granularity)


def _check_width(name, bits, allowed, none):
    """Raises unless `bits` is a whole number in `allowed`, or `None` and that stands for `none`."""
    if none if bits is None else type(bits) is int and bits in allowed:
        return
    low, high = allowed[0], allowed[-1]
    numbers = f"a whole number from {low} to {high}" if low < high else str(low)
    number = f"{numbers}, or None ({none})" if none else f"{numbers} where it is dynamic"
    raise ValueError(f"`{name}` must be {number}. Received: {name}={bits!r}.")


_TABLE = (
    Scheme("w8a8", 8, 8, summary="8-bit integers throughout"),
    Scheme("w8a16", 8, 16, summary="8-bit weights, 16-bit activations"),
    Scheme(
        "w4a8",
        4,
        8,
        weight_quantizer="learned_step",
        summary="4-bit weights, 8-bit activations",
    ),
    Scheme(
        "w2a8",
        2,
        8,
        edge_weight_bits=8,
        weight_quantizer="learned_step",
        summary="2-bit weights, 8-bit first and last layer, 8-bit activations",
    ),
    Scheme("w8", 8, None, summary="8-bit weights, float arithmetic"),
    Scheme("w4", 4, None, summary="4-bit weights, float arithmetic"),
    Scheme(
        "w4_g32",
        4,
        None,
        group_size=32,
        weight_quantizer="learned_step",
        summary="4-bit weights in groups of 32, float arithmetic: for `to_packed`",
    ),
    Scheme("w8a8_dynamic", 8, 8, dynamic=True, summary="8-bit weights, activations at run time"),
    Scheme(
        "w4a8_g32",
        4,
        8,
        dynamic=True,
        group_size=32,
        weight_quantizer="learned_step",
        summary="4-bit weights in groups of 32, activations at run time",
    ),
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
