"""Small models after real architectures, each under four schemes, beside the TFLite converter's.

    python benchmarks/architectures.py [--models=unet,gat] [--schemes=w8a8,w4a8]

A row: the ratio of signal to noise of our model and of the TFLite converter's file, float
operators of both (those of norms apart), values apart op by op (and where the operator is named
inexact), output values apart.
"""

import collections
import pathlib
import sys
import tempfile

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "end_to_end"))

from architectures import MODELS, build, data_of  # noqa: E402
from architectures.measure import SCHEMES, measure  # noqa: E402

_MODELS = flags.DEFINE_list("models", list(MODELS), "Which.")
_SCHEMES = flags.DEFINE_list("schemes", list(SCHEMES), "Under which schemes.")


def row(name, scheme):
    """Returns a row of the table, and what it misses of the bars."""
    model = build(name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model, data_of(model), scheme, pathlib.Path(folder))
    except Exception as error:  # The table says so.
        return f"| {name} | {scheme} | {type(error).__name__}: {str(error)[:120]} |", ["aborts"]
    missed = [
        what
        for what, misses in {
            "apart": found.apart > 0,
            "end to end": not found.agrees,
            "dB": found.rival is not None and found.sqnr < found.rival - 1.0,
            "float": found.rival is not None
            and len(found.float_operators) > len(found.rival_float),
        }.items()
        if misses
    ]
    rival = "-" if found.rival is None else f"{found.rival:.1f}"
    counts = collections.Counter(found.float_operators)
    return (
        f"| {name} | {scheme} | {found.sqnr:.1f} | {rival} | {len(found.float_operators)} "
        f"| {len(found.rival_float)} | {found.apart} ({found.named}) | {found.end_to_end} "
        f"| {', '.join(missed)} {dict(counts) if 'float' in missed else ''} |"
    ), missed


def main(_):
    """Prints the table and how many rows miss which bar."""
    print("| model | scheme | dB | rival | float | rival | apart (named) | end | misses |")
    print("|---|---|---|---|---|---|---|---|---|")
    misses, rows = collections.Counter(), 0
    for name in _MODELS.value:
        for scheme in _SCHEMES.value:
            text, missed = row(name, scheme)
            print(text, flush=True)
            misses.update(missed)
            rows += 1
    print(f"\n{rows} rows; missed: {dict(misses)}")


if __name__ == "__main__":
    app.run(main)
