"""Every network of `keras.applications`, quantized, converted and compared.

    python benchmarks/applications.py --folder RESULTS [--only NASNetMobile,ResNet50] [--small]
    python benchmarks/applications.py --folder RESULTS --markdown docs/applications.md

Each network runs in a process of its own and leaves `RESULTS/NAME.json`; one that is there is not
run again. `--markdown` writes what is there between the file's `<!-- applications -->` markers and
keeps the rows of networks that are not there.
What each column means is in benchmarks/README.md. The exit code is 1 if a bar is missed.
"""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import check_file
import networks
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.progress import Progress

import tfquant as tfq

SCHEMES = ("w8a8", "w4a8")
CALIBRATION_ROWS = 10
ROWS = 32

# The smallest network of each family.
SMALL = (
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
)

FLAGS = flags.FLAGS
flags.DEFINE_string("folder", None, "Folder of results, made if it is not there.")
flags.DEFINE_list("only", [], "Names of networks; all without.")
flags.DEFINE_bool("small", False, "The smallest network of each family.")
flags.DEFINE_string("markdown", None, "Markdown file to write the table into.")
flags.DEFINE_string("one", None, "Used by the script itself.")


def measure(name: str) -> dict:
    """Returns the figures of one network as plain values."""
    model = networks.network(name)
    found = {"name": name, "side": model.input_shape[1], "parameters": model.count_params()}
    calibration = networks.images(model, CALIBRATION_ROWS, seed=1)
    rows = networks.images(model, ROWS, seed=2)
    expected = model.predict(rows, verbose=0).argmax(-1)
    for scheme in SCHEMES:
        start = time.perf_counter()
        q = tfq.quantize_model(model, scheme)
        tfq.calibrate(q, calibration, progress=False)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.tflite")
            report = tfq.to_tflite(q, path, samples=rows, progress=False)
            seconds = time.perf_counter() - start
            with open(path, "rb") as file:
                content = file.read()
        same = float(np.mean(q.predict(rows, verbose=0).argmax(-1) == expected))
        found["float_bytes"] = report.float_bytes
        found[scheme] = {"seconds": seconds, "same": same, **_figures(report, content, rows)}
    return found


def _figures(report, content, rows):
    """Describes one file: ours (`exact`, `table`) and the independent check of it (`check`)."""
    check = check_file.check(content, rows)
    reasons = {}
    for operator in report.float_operators:
        reason = re.sub(r"layer '\S+' \((\w+)\)", r"\1", operator.reason)
        reasons.setdefault(reason, []).append(operator.operator)
    exact, table = (
        _total([x.parity for x in report.layers if (x.arithmetic == "exact") == is_exact])
        for is_exact in (True, False)
    )
    return {
        "bytes": len(content),
        "operators": len(report.layers),
        "float_operators": reasons,
        "exact": exact,
        "table": table,
        "check": dataclasses.asdict(check.total),
        "check_exact": check.exact,
        "saturated": report.saturated_biases,
        "int4": len(check.int4),
        "end_to_end": dataclasses.asdict(report.end_to_end),
    }


def _total(parities):
    inside = [p for p in parities if p is not None and p.in_steps]
    return {
        "values": sum(p.values for p in inside),
        "differing": sum(p.differing for p in inside),
        "largest": max((p.largest for p in inside), default=0.0),
    }


def missed(found: dict) -> list[str]:
    """Returns the bars that a network misses, in words."""
    words = []
    for scheme in SCHEMES:
        f = found[scheme]
        bars = {
            "a value differs op by op": not f["exact"]["differing"],
            "a table is off by two steps": f["table"]["largest"] <= 1,
            "the file recomputed differs": f["check_exact"],
            "a bias saturates": not f["saturated"],
            "no weight has 4 bits": scheme != "w4a8" or f["int4"],
        }
        end = f["end_to_end"]
        bars["predictions differ"] = end["equal_predictions"] >= 0.995
        # A rounding that falls the other way in float, or in a table, is several steps further on.
        if not (f["float_operators"] or f["table"]["differing"]):
            bars["outputs differ"] = end["differing"] <= 1e-3 * end["values"]
        words += [f"{found['name']} {scheme}: {what}" for what, met in bars.items() if not met]
    return words


def table(results) -> str:
    """Returns the table in Markdown."""
    header = (
        "network | pixels | float operators inside: w8a8 | apart op by op: w8a8 | w4a8"
        " | same predictions, Keras and LiteRT: w8a8 | w4a8 | apart end to end: w8a8 | w4a8"
        " | bytes: float | w8a8 | w4a8 | seconds: w8a8"
    )
    lines = [header.split(" | "), ["---", "---:", "---", *["---:"] * 10]]
    lines += [_row(found) for found in results]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(found):
    both = [found[scheme] for scheme in SCHEMES]
    groups = both[0]["float_operators"].items()
    apart = lambda f: f["exact"]["differing"] + f["table"]["differing"]  # noqa: E731
    values = lambda f: f["exact"]["values"] + f["table"]["values"]  # noqa: E731
    return [
        found["name"],
        str(found["side"]),
        "; ".join(f"{len(kinds)}: {reason}" for reason, kinds in groups) or "none",
        *(f"{apart(f):,} of {values(f):,}" for f in both),
        *(f"{f['end_to_end']['equal_predictions']:.1%}" for f in both),
        *(f"{f['end_to_end']['differing']:,} of {f['end_to_end']['values']:,}" for f in both),
        f"{found['float_bytes']:,}",
        *(f"{f['bytes']:,}" for f in both),
        f"{both[0]['seconds']:.0f}",
    ]


def write_markdown(path: str, text: str) -> None:
    """Puts a table between the markers of a Markdown file, whose other rows it keeps.

    Raises:
        ValueError: If the file has no markers.
    """
    with open(path, encoding="utf-8") as file:
        old = file.read()
    marked = re.compile(r"(<!-- applications -->\n).*?(\n<!-- /applications -->)", re.DOTALL)
    if not marked.search(old):
        raise ValueError(f"Markers <!-- applications --> are expected. Received: '{path}'.")
    _write(path, marked.sub(lambda match: match[1] + _merged(text, match[0]) + match[2], old))


def _merged(text, old):
    """Returns the table of `text` with those rows of `old` that it lacks."""
    head, *rows = (line for line in text.splitlines() if not line.startswith("| ---"))
    ruler = next(line for line in text.splitlines() if line.startswith("| ---"))
    name = lambda row: row.split(" | ")[0]  # noqa: E731
    kept = [line for line in old.splitlines() if line.startswith("| ") and line != ruler]
    found = {name(row): row for row in (*kept, *rows)}
    found.pop(name(head), None)
    return "\n".join([head, ruler, *(found[key] for key in sorted(found))])


def _write(path, text):
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.tmp", path)


def _run(*arguments) -> str:
    """Runs this script in a fresh process and returns the last line that it prints."""
    command = [sys.executable, os.path.abspath(__file__), *arguments]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{found.stderr[-3000:]}")
    return found.stdout.splitlines()[-1]


def main(argv):
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"No arguments are expected. Received: {argv[1:]}")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    known = networks.names()
    unknown = set(FLAGS.only) - set(known)
    if unknown:
        raise app.UsageError(f"--only must name some of {known}. Received: {sorted(unknown)}")
    if FLAGS.one:
        print(json.dumps(measure(FLAGS.one)))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    if not FLAGS.folder:
        raise app.UsageError("--folder must name a folder for the results.")
    chosen = FLAGS.only or (SMALL if FLAGS.small else known)
    failed = [] if FLAGS.markdown else _measure_all(chosen, console)
    results = [_read(name) for name in known if os.path.exists(_path(name))]
    text = table(results)
    if FLAGS.markdown:
        write_markdown(FLAGS.markdown, text)
    console.print(text, markup=False)
    bars = [words for found in results for words in missed(found)]
    console.print("\n".join([*failed, *bars]), markup=False)
    console.print(f"{len(results)} of {len(known)} networks; {len(failed + bars)} bars missed")
    return 1 if failed or bars else 0


def _measure_all(chosen, console) -> list[str]:
    """Measures the networks that have no results yet; returns those that failed, in words."""
    os.makedirs(FLAGS.folder, exist_ok=True)
    failed = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for name in chosen:
            progress.update(task, description=name)
            try:
                if not os.path.exists(_path(name)):
                    _write(_path(name), _run("--one", name))
            except RuntimeError as error:
                failed.append(f"{name}: {error}")
            progress.advance(task)
    return failed


def _read(name):
    with open(_path(name), encoding="utf-8") as file:
        return json.load(file)


def _path(name):
    return os.path.join(FLAGS.folder, f"{name}.json")


if __name__ == "__main__":
    app.run(main)
