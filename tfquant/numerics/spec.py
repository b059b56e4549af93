"""What a quantized tensor looks like: width, signedness, symmetry, and what shares a scale."""

import dataclasses
import numbers


@dataclasses.dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclasses.dataclass(frozen=True)
class PerAxis:
    """One scale for each index of `axis`.

    Args:
        axis: An axis, or a tuple of axes when several together number the channels (the kernel
            of a depthwise convolution, `(height, width, channels, multiplier)`, has `(2, 3)`).
            Negative axes count from the end.
    """

    axis: int | tuple[int, ...] = -1

    @property
    def axes(self) -> tuple[int, ...]:
        """`axis` as a tuple."""
        return (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)


@dataclasses.dataclass(frozen=True)
class PerGroup:
    """One scale for each run of `group_size` values along `axis`, at each index of the others.

    The scales are 16-bit floats (`numerics.group_scale`).

    Args:
        axis: Axis that is cut into groups; negative axes count from the end.
        group_size: Values that share a scale; it must divide the length of `axis`.
    """

    axis: int
    group_size: int

    def __post_init__(self):
        if self.group_size < 1:
            raise ValueError(
                f"`group_size` must be at least 1. Received: group_size={self.group_size}."
            )


Granularity = PerTensor | PerAxis | PerGroup


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """The integer grid of a tensor.

    Args:
        num_bits: Width in bits, 1 to 16.
        signed: Whether integers run from `-2**(num_bits-1)` (else from 0).
        symmetric: Whether the zero point is the middle of the range (0 when signed).
        narrow_range: Whether the lowest integer is left out, so that a signed range is symmetric
            about zero (`-127..127`).
        granularity: `PerTensor()`, `PerAxis(axis)` or `PerGroup(axis, group_size)`.

    Raises:
        ValueError: If `num_bits` is no whole number from 1 to 16.
    """

    num_bits: int
    signed: bool = True
    symmetric: bool = False
    narrow_range: bool = False
    granularity: Granularity = PerTensor()

    def __post_init__(self):
        whole = isinstance(self.num_bits, numbers.Integral) and not isinstance(self.num_bits, bool)
        if not whole or not 1 <= self.num_bits <= 16:
            raise ValueError(
                "`num_bits` must be a whole number between 1 and 16. "
                f"Received: num_bits={self.num_bits!r}."
            )

    @property
    def qmin(self) -> int:
        """Lowest integer of the grid."""
        return -(2 ** (self.num_bits - 1)) * self.signed + self.narrow_range

    @property
    def qmax(self) -> int:
        """Highest integer of the grid."""
        return 2 ** (self.num_bits - self.signed) - 1

    @property
    def stored_bits(self) -> int:
        """Width of the integers that hold a computed tensor on a device: 8 or 16."""
        return 8 if self.num_bits <= 8 else 16

    def to_dict(self) -> dict:
        """Returns the fields as plain values that `from_dict` reads back."""
        fields = dataclasses.asdict(self)
        fields["granularity"] = {
            "kind": type(self.granularity).__name__,
            **dataclasses.asdict(self.granularity),
        }
        return fields

    @classmethod
    def of(cls, x):
        """Returns what `from_dict` makes of a dict; anything else, as a specification, as it is."""
        return cls.from_dict(x) if isinstance(x, dict) else x

    @classmethod
    def from_dict(cls, fields: dict) -> "QuantSpec":
        """Returns the specification that `to_dict` wrote."""
        granularity = dict(fields["granularity"])
        kind = {c.__name__: c for c in (PerTensor, PerAxis, PerGroup)}[granularity.pop("kind")]
        if isinstance(granularity.get("axis"), list):
            granularity["axis"] = tuple(granularity["axis"])
        return cls(**{**fields, "granularity": kind(**granularity)})
