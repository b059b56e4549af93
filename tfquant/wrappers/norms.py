"""Norms that compute in integers or in float, as the model's outputs ask for."""

from tfquant.graph.walk import all_layers


def as_pairs(norms) -> tuple:
    """Returns pairs of names and forms as they come from a file, as tuples."""
    return tuple((name, form) for name, form in norms)


def norms_of(model) -> dict[str, str]:
    """Returns the forms that schemes ask for of the norms of a model that have one in integers.

    Returns:
        Dict from names of norms, in their order, to `"auto"` or `"integer"`.
    """
    return {name: form for layer in _parts(model) for name, form in layer.norms}


def in_float(model) -> list[str]:
    """Returns the names of those norms that compute in float."""
    parts = [layer for layer in _parts(model) if layer.in_float]
    return list(dict.fromkeys(name for layer in parts for name, _ in layer.norms))


def leave_in_float(model, names) -> None:
    """Has the norms of `names` compute in float, and the others in integers.

    What several norms read is float where all of them are.
    """
    for layer in _parts(model):
        layer.in_float = all(name in names for name, _ in layer.norms)


def norms_in_words(model) -> str:
    """Returns what was made of a model's norms; nothing where none can be in integers."""
    known = getattr(model, "norms", None)
    if known is not None:
        return str(known)
    norms, floating = norms_of(model), in_float(model)
    if not norms:
        return ""
    return f"{len(norms) - len(floating)} in integers, {len(floating)} in float"


def _parts(model):
    return [layer for layer in all_layers(model) if getattr(layer, "norms", ())]
