"""The kinds of grids that training knows, by name, and how one takes another's place.

A file of a family enters it with `@family(WEIGHT_QUANTIZERS, "name")` above its class.
"""

# Classes by name, which the files of the families fill as they are imported.
WEIGHT_QUANTIZERS: dict[str, type] = {}
ACTIVATION_QUANTIZERS: dict[str, type] = {}

# What the registry's configs make, and what others take the place of.
PLAIN_WEIGHTS, PLAIN_ACTIVATIONS = "abs_max", "static"


def family(table: dict, name: str):
    """Returns a decorator that enters a class into a table under a name.

    Raises:
        ValueError: If the name is taken.
    """
    if name in table:
        raise ValueError(
            f"A family is registered once. Received: {name!r}, which is {table[name].__name__}."
        )

    def enter(kind):
        table[name] = kind
        return kind

    return enter


def check(table: dict, argument: str, name: str) -> str:
    """Returns `name` if `table` has it.

    Raises:
        ValueError: If it has not.
    """
    if name not in table:
        known = ", ".join(map(repr, table))
        raise ValueError(f"`{argument}` must be one of {known}. Received: {name!r}.")
    return name


def weight_quantizer(name: str, quantizer):
    """Returns the quantizer of family `name` in the place of an `AbsMax`; others stay."""
    kind, plain = WEIGHT_QUANTIZERS[name], WEIGHT_QUANTIZERS[PLAIN_WEIGHTS]
    return kind(quantizer.spec) if type(quantizer) is plain is not kind else quantizer


def activation_quantizer(name: str, quantizer, group: str | None = None):
    """Returns the quantizer of family `name` in the place of a `Static`; others stay.

    What must agree with others, at a concatenation, keeps its calibrated grid: `Static`.
    """
    plain = ACTIVATION_QUANTIZERS[PLAIN_ACTIVATIONS]
    if type(quantizer) is not plain:
        return quantizer
    kind = ACTIVATION_QUANTIZERS[name]
    if kind is plain and group is None:
        return quantizer
    made = kind(quantizer.spec) if group is None else plain(quantizer.spec, group=group)
    made.headroom = quantizer.headroom
    return made
