"""What races of lowbit_matmul.py said, kept in files, and the tables that are made of them."""

import dataclasses
import json
import os
import pathlib

import numpy as np


@dataclasses.dataclass
class Row:
    """A line of the target table: our contestant, the rival's, and the bar."""

    ours: str
    rival: str
    bar: float
    rows: tuple


# Verdicts. No kernel can meet a bar that the rival's time over our floor is below.
MISSED, ABOVE = "MISSED", "missed, also at the floor"
# Between them lies what `--markdown` replaces.


MARKS = ("<!-- made by lowbit_matmul.py --report -->", "<!-- end -->")
TARGETS = [
    Row("w4a8 g32", "ort 4b acc4", 2.5, (1, 8, 64, 512)),
    Row("w4a8 g32x32", "ort 4b acc4", 2.5, (1, 8, 64, 512)),
    Row("w4a8 g32x32", "ggml q4_0", 2.0, (1, 8, 64, 512)),
    Row("w4a8 g32x32", "ggml q4_k", 2.0, (1, 8, 64, 512)),
    Row("w4a8 g32", "litert int4 b32", 4.0, (1, 8, 64, 512)),
    Row("w4a8 channel", "litert int4", 1.0, (1, 8, 64, 512)),
    Row("w4a8 g32 tf", "tf.matmul", 8.0, (1,)),
    Row("w4a8 g32 tf", "tf.matmul", 4.0, (8, 64)),
    Row("w4a8 g32 tf", "tf.matmul", 2.0, (512,)),
    Row("w4a16 g32 tf", "tf.matmul", 1.3, (8, 64, 512)),
    Row("w4a16 g32", "ort 4b acc0", 4.0, (1,)),
    Row("w8a8", "litert int8", 1.6, (1, 8, 64, 512)),
    Row("w8a8", "ort integer", 0.9, (1, 8, 64, 512)),
    Row("w8a8 g32", "ggml q8_0", 1.0, (1, 8, 64, 512)),
    Row("w8a8 g32", "ort 8b acc4", 1.0, (1, 8, 64, 512)),
    Row("w2a8 channel", "litert int2", 1.8, (1, 8, 64, 512)),
    Row("w2a8 g32", "ggml tq2_0", 2.0, (1, 8, 64, 512)),
    Row("w2a8 g32", "ort 2b acc4", 1.0, (1, 8, 64, 512)),
    Row("w1a1", "faiss", 6.0, (1, 8, 64, 512)),
    Row("w1a1", "larq", 6.0, (1, 8, 64, 512)),
    Row("w1a1 tf", "tf.matmul", 7.0, (1, 8, 64, 512)),
]


@dataclasses.dataclass
class Piece:
    """What one race said: seconds of each contestant, round by round; a file of the folder.

    Attributes:
        threads: Threads of every contestant.
        shape: `[K, N]` of the weights.
        m: Rows of x.
        cold: Whether the caches were emptied before each call.
        machine: Processor, path, and the measured floors in words.
        seconds: Name of a contestant -> seconds, one for each round.
        floors: Name of one of ours -> the least that this machine could take.
    """

    threads: int
    shape: list
    m: int
    cold: bool
    machine: str
    seconds: dict
    floors: dict

    @property
    def where(self):
        """Its name in tables."""
        return f"{self.shape[0]}x{self.shape[1]} M={self.m}{' cold' if self.cold else ''}"

    def save(self, folder):
        """Writes its file, as a whole or not at all."""
        name = f"{self.threads}-{self.shape[0]}x{self.shape[1]}-{self.m}{'-cold' * self.cold}.json"
        write_json(pathlib.Path(folder) / name, dataclasses.asdict(self))


def write_report(folder, markdown):
    """Prints the tables of every machine's pieces, or puts them between the marks of a file."""
    folders = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_dir())
    lines = ["## How many rows are met", "", *counts_table(folders), ""]
    for machine in folders:
        lines += machine_report(machine)
    if markdown is None:
        print("\n".join(lines))
        return
    path, (begin, end) = pathlib.Path(markdown), MARKS
    before, _, rest = path.read_text().partition(begin)
    after = rest.partition(end)[2]
    made = path.with_suffix(".part")
    made.write_text("\n".join([before + begin, "", *lines, end]) + after)
    os.replace(made, path)


def read_entries(folder):
    """What the files of one machine hold."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def read_pieces(folder):
    """The pieces among them, in the order of the tables."""
    pieces = [Piece(**entry) for entry in read_entries(folder) if "seconds" in entry]
    return sorted(pieces, key=lambda p: (p.threads, np.prod(p.shape), p.m, p.cold))


def machine_report(folder):
    """The tables of the pieces that one machine left in a folder called after its path."""
    found, pieces = read_entries(folder), read_pieces(folder)
    lines = [f"## The tables of {folder.name}", ""]
    for threads in sorted({piece.threads for piece in pieces}):
        mine = [piece for piece in pieces if piece.threads == threads]
        lines += [f"### {threads} thread{'s' * (threads > 1)}", "", *targets_table(mine)]
        lines += ["", "Our time / floor, medians:", "", *floors_table(mine), ""]
    for entry in found:
        if "dequantize" in entry:
            where = f"{entry['threads']} thread{'s' * (entry['threads'] > 1)}"
            lines += [f"Dequantize 4096x4096 to float32, {where}; share of the bandwidth of a copy"]
            lines += ["that writes as much (bar: 0.8):", "", *dequantize_table(entry["dequantize"])]
            lines.append("")
    machines = sorted({entry["machine"] for entry in found})
    lines += ["Floors that were measured with the pieces:", "", *(f"* {m}" for m in machines), ""]
    return lines


def targets_table(pieces):
    """A row for each bar and piece that it applies to: the rival's time / ours, and / our floor."""
    lines = [
        "| target | bar | where | min | median | max | at the floor | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in TARGETS:
        for piece in pieces:
            both = row.ours in piece.seconds and row.rival in piece.seconds
            if not both or piece.m not in row.rows:
                continue
            rival = piece.seconds[row.rival]
            ratios = np.divide(rival, piece.seconds[row.ours])
            low, middle, high = np.min(ratios), np.median(ratios), np.max(ratios)
            most = np.median(rival) / piece.floors[row.ours]
            verdict = "met" if middle >= row.bar else ABOVE if most < row.bar else MISSED
            cells = [f"{row.ours} / {row.rival}", str(row.bar), piece.where]
            cells += [f"{value:.2f}" for value in (low, middle, high, most)]
            lines.append("| " + " | ".join([*cells, verdict]) + " |")
    return lines


def counts_table(folders):
    """How many rows of each machine are met, missed, and missed where the floor misses as well."""
    lines = ["| machine | threads | rows | met | missed | of these, missed by the floor, too |"]
    lines.append("|---|---|---|---|---|---|")
    for folder in folders:
        pieces = read_pieces(folder)
        for threads in sorted({piece.threads for piece in pieces}):
            rows = targets_table([piece for piece in pieces if piece.threads == threads])[2:]
            met = sum(row.endswith("| met |") for row in rows)
            above = sum(row.endswith(f"| {ABOVE} |") for row in rows)
            cells = [folder.name, threads, len(rows), met, len(rows) - met, above]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def floors_table(pieces):
    """Our times as multiples of the floor, a column for each piece."""
    names = list(dict.fromkeys(name for piece in pieces for name in piece.floors))
    lines = ["| | " + " | ".join(piece.where for piece in pieces) + " |"]
    lines.append("|---" * (len(pieces) + 1) + "|")
    for name in names:
        cells = [
            f"{np.median(piece.seconds[name]) / piece.floors[name]:.2f}"
            if name in piece.floors
            else ""
            for piece in pieces
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def times_table(piece):
    """Milliseconds of every contestant."""
    lines = [f"\n## {piece.where}\n", "| contestant | ms: min median max | GMAC/s | time / floor |"]
    lines.append("|---|---|---|---|")
    for name, seconds in piece.seconds.items():
        middle = np.median(seconds)
        share = f"{middle / piece.floors[name]:.2f}" if name in piece.floors else ""
        ends = f"{np.min(seconds) * 1e3:.3f} {middle * 1e3:.3f} {np.max(seconds) * 1e3:.3f}"
        speed = piece.m * np.prod(piece.shape) / middle / 1e9
        lines.append(f"| {name} | {ends} | {speed:.1f} | {share} |")
    return lines


def dequantize_table(shares):
    """The bandwidth of dequantize beside that of a copy."""
    lines = ["| bits | scales | min | median | max | |", "|---|---|---|---|---|---|"]
    for name, ratios in shares.items():
        low, middle, high = np.min(ratios), np.median(ratios), np.max(ratios)
        verdict = "met" if middle >= 0.8 else "MISSED"
        lines.append(f"| {name} | {low:.2f} | {middle:.2f} | {high:.2f} | {verdict} |")
    return lines


def write_json(path, value):
    """Writes a file, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(".part")
    made.write_text(json.dumps(rounded(value), indent=1) + "\n")
    os.replace(made, path)


def rounded(value):
    """Five digits of every float."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
