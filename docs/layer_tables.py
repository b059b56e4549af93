"""Tables of layers, their coverage and schemes, made from the registry.

`python docs/layer_tables.py` writes them into the files of `TEXTS`, between markers such as
`<!-- layers -->` and `<!-- /layers -->`.
"""

import inspect
import pathlib
import re

from keras import layers
from layer_coverage import COVERAGE

from tfquant.registry import KERAS_LAYERS, SCHEMES
from tfquant.registry.registry import QuantizeRegistry

ROOT = pathlib.Path(__file__).parents[1]

# The files with tables, and which.
TEXTS = {
    "README.md": ("schemes",),
    "docs/schemes.md": ("schemes",),
    "docs/layers.md": ("layers", "coverage"),
}

# Arguments for the layers that cannot be made without any.
ARGUMENTS = {
    "activation": "relu",
    "alpha": 0.1,
    "dims": (2, 1),
    "filters": 1,
    "height": 2,
    "input_dim": 2,
    "kernel_size": 1,
    "n": 2,
    "output_dim": 2,
    "output_size": 2,
    "pool_size": 2,
    "rate": 0.5,
    "stddev": 0.1,
    "target_shape": (1,),
    "units": 1,
    "width": 2,
}


def layer_table(registry: QuantizeRegistry = KERAS_LAYERS) -> str:
    """Returns a Markdown table: which scheme quantizes which layers, and to how many bits.

    Layers with the same answers share a row.
    """
    rows = {}
    for layer_type in registry.layer_types():
        layer = _make(layer_type)
        cells = tuple(
            _cell(registry.get_quantize_config(layer, scheme)) for scheme in SCHEMES.values()
        )
        rows.setdefault(cells, []).append(layer_type.__name__)
    lines = [("layers", *SCHEMES), ("---",) * (len(SCHEMES) + 1)]
    lines += [(", ".join(sorted(names)), *cells) for cells, names in rows.items()]
    return _markdown(lines)


def coverage_table() -> str:
    """Returns a Markdown table: what a `w8a8` file makes of every layer of Keras."""
    lines = [("in the file", "layers of `keras.layers`"), ("---",) * 2]
    for claim, kinds in COVERAGE.items():
        lines.append((claim, f"{len(kinds)}: {', '.join(sorted(_public_name(k) for k in kinds))}"))
    return _markdown(lines)


def scheme_table() -> str:
    """Returns a Markdown table of all schemes."""
    lines = [("scheme", "weights", "activations", "calibration", "what it is"), ("---",) * 5]
    for scheme in SCHEMES.values():
        weights = f"{scheme.weight_bits} bit" if scheme.weight_bits else "float16"
        weights += f", groups of {scheme.group_size}" if scheme.group_size else ""
        activations = f"{scheme.activation_bits} bit" if scheme.activation_bits else "float32"
        needed = "needed" if scheme.static else "-"
        lines.append((f"`{scheme.name}`", weights, activations, needed, scheme.summary))
    return _markdown(lines)


TABLES = {"layers": layer_table, "coverage": coverage_table, "schemes": scheme_table}


def update(text: str, names: tuple[str, ...]) -> str:
    """Returns the Markdown `text` with the current tables `names` between its markers.

    Raises:
        ValueError: If a marker is missing.
    """
    for name in names:
        table = TABLES[name]()
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        if not marked.search(text):
            raise ValueError(
                f"A text with the markers <!-- {name} --> and <!-- /{name} --> is expected."
            )
        text = marked.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


def _public_name(kind):
    """Returns the name that `keras.layers` has for a layer; it may have shorter ones as well."""
    names = [name for name, x in vars(layers).items() if x is kind]
    return max(names, key=lambda name: (name == kind.__name__, len(name)))


def _make(layer_type):
    """Returns a layer of the type, with an argument for each that it requires."""
    parameters = inspect.signature(layer_type.__init__).parameters.values()
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"
    ]
    missing = [name for name in required if name not in ARGUMENTS]
    if missing:
        raise ValueError(
            f"A value is needed for each argument that {layer_type.__name__} requires: add "
            f"{missing} to ARGUMENTS."
        )
    return layer_type(**{name: ARGUMENTS[name] for name in required})


def _cell(config):
    """Returns the width of the weights, `yes` without weights, or `-` for a float layer."""
    if config is None:
        return "-"
    weights = getattr(config, "weights", None)
    if weights is None:
        return "yes"
    if weights == "float16":
        return "16"
    group_size = getattr(weights.granularity, "group_size", 0)
    return f"{weights.num_bits} g{group_size}" if group_size else str(weights.num_bits)


def _markdown(lines):
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    for file, names in TEXTS.items():
        path = ROOT / file
        path.write_text(update(path.read_text(encoding="utf-8"), names), encoding="utf-8")
