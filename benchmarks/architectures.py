"""Small models after real architectures, each under four schemes, beside the TFLite converter's.

Backbones of KerasHub have `hub_` in front of their names, where that is installed.

    python benchmarks/architectures.py --results RESULTS.jsonl [--models=unet,gat] [--schemes=w8a8]
    python benchmarks/architectures.py --results RESULTS.jsonl --markdown docs/architectures.md

The first measures what is not in the results yet, one process for all, and may be ended and run
again; `--again` measures everything anew. The second writes what is there between the file's
`<!-- architectures -->` markers.
"""

import collections
import dataclasses
import gc
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import keras
from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "end_to_end"))

import backbones  # noqa: E402
from architectures import MODELS, build, data_of  # noqa: E402
from architectures.measure import SCHEMES, Measured, measure  # noqa: E402

HUB = {f"hub_{name}": name for name in backbones.BACKBONES}
NAMES = [*MODELS, *HUB]

_MODELS = flags.DEFINE_list("models", NAMES, "Which.")
_SCHEMES = flags.DEFINE_list("schemes", list(SCHEMES), "Under which schemes.")
_RESULTS = flags.DEFINE_string("results", None, "File of results, a line each.", required=True)
_MARKDOWN = flags.DEFINE_string("markdown", None, "Markdown file to write the table into.")
_AGAIN = flags.DEFINE_bool("again", False, "Measure what was measured.")

# A file that is closer to its model has quantized nothing.
FLOAT = 100.0

_MARKERS = re.compile("(<!-- architectures -->\n).*(<!-- /architectures -->)", re.DOTALL)


def measured(name, scheme) -> dict:
    """Returns what becomes of one model under one scheme; the error if that stops."""
    row = {"model": name, "scheme": scheme, "commit": _commit()}
    try:
        model, data = _model(name)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model, data, scheme, pathlib.Path(folder))
    except Exception as error:  # The table says so.
        return {**row, "error": f"{type(error).__name__}: {error}"[:200]}
    return {**row, **dataclasses.asdict(found)}


def _model(name):
    """Returns a model and inputs of it."""
    if name not in HUB:
        model = build(name)
        return model, data_of(model)
    import keras_hub

    model = backbones.build(HUB[name], keras_hub.models)
    return backbones.flat(model, backbones.data_of(model))


def misses(row) -> list[str]:
    """Returns which bars a row misses."""
    if "error" in row:
        return ["aborts"]
    found = Measured(**{f.name: row[f.name] for f in dataclasses.fields(Measured)})
    beside = found.rival is not None
    bars = {
        "apart": found.apart > 0,
        "end to end": not found.agrees,
        # The converter leaves small weights float where activations are.
        "dB": beside and found.rival < FLOAT and found.sqnr <= found.rival - 1.0,
        "float": beside and len(found.float_operators) > len(found.rival_float),
    }
    return [bar for bar, missed in bars.items() if missed]


def table(rows) -> str:
    """Returns the table, a line for each model, and what its rows miss."""
    by_name = collections.defaultdict(dict)
    for row in rows:
        by_name[row["model"]][row["scheme"]] = row
    lines = [f"| model | {' | '.join(SCHEMES)} | commits |", "|---" * (len(SCHEMES) + 2) + "|"]
    for name in NAMES:
        found = by_name.get(name, {})
        cells = [_cell(found.get(scheme)) for scheme in SCHEMES]
        commits = ", ".join(dict.fromkeys(row["commit"] for row in found.values()))
        lines.append(f"| {name} | {' | '.join(cells)} | {commits} |")
    known = [row for found in by_name.values() for row in found.values()]
    missed = [(row, bars) for row in known if (bars := misses(row))]
    named = "; ".join(f"{r['model']} {r['scheme']}: {', '.join(bars)}" for r, bars in missed)
    count = f"{len(known)} of {len(NAMES) * len(SCHEMES)} measured"
    return "\n".join([*lines, "", f"{count}; bars missed: {named or 'none'}.", ""])


def _cell(row):
    if row is None:
        return "-"
    if "error" in row:
        return row["error"].split(":")[0]
    rival, theirs = ("-", "-")
    if row["rival"] is not None:
        rival, theirs = f"{row['rival']:.1f}", len(row["rival_float"])
    apart = f"{row['apart']}" + (f" + {row['named']} named" if row["named"] else "")
    floats = f"{len(row['float_operators'])} ({theirs})"
    return f"{row['sqnr']:.1f} ({rival}), {floats}, {apart}, {row['end_to_end']}"


def _commit():
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(_):
    """Measures, or writes the table."""
    path = pathlib.Path(_RESULTS.value)
    rows = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    if _MARKDOWN.value:
        file = pathlib.Path(_MARKDOWN.value)
        text = file.read_text(encoding="utf-8")
        file.write_text(_MARKERS.sub(lambda m: m[1] + table(rows) + m[2], text), encoding="utf-8")
        return
    done = set() if _AGAIN.value else {(row["model"], row["scheme"]) for row in rows}
    for scheme in _SCHEMES.value:
        for name in _MODELS.value:
            if (name, scheme) in done:
                continue
            row = measured(name, scheme)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(name, scheme, _cell(row), *misses(row), flush=True)
            keras.backend.clear_session()
            gc.collect()


if __name__ == "__main__":
    app.run(main)
