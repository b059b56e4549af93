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


# Between them lies what `--markdown` replaces.
MARKS = ("<!-- made by lowbit_matmul.py --report -->", "<!-- end -->")
MISSED, ABOVE = "MISSED", "missed, also at the floor"
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
# How many times the floor w4a8 g32 may take.
FLOOR_BARS = [(1.5, lambda piece: piece.m >= 64), (1.2, lambda piece: piece.cold)]


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

    def share(self, name):
        """The time of a contestant over its floor; nothing where it has none."""
        if name not in self.floors:
            return ""
        return float(np.median(self.seconds[name]) / self.floors[name])

    def save(self, folder):
        """Writes its file, as a whole or not at all."""
        name = f"{self.threads}-{self.shape[0]}x{self.shape[1]}-{self.m}{'-cold' * self.cold}.json"
        write_json(pathlib.Path(folder) / name, dataclasses.asdict(self))


def write_report(folder, markdown):
    """Prints how every machine's pieces did; or puts it between the marks of a file.

    The tables themselves go beside the pieces, into one file for each machine.
    """
    folders = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_dir())
    lines = summary(folders)
    for machine in folders:
        write_text(machine.with_suffix(".md"), "\n".join(machine_report(machine)))
    if markdown is None:
        print("\n".join(lines))
        return
    path, (begin, end) = pathlib.Path(markdown), MARKS
    before, _, rest = path.read_text().partition(begin)
    after = rest.partition(end)[2]
    write_text(path, "\n".join([before + begin, "", *lines, end]) + after)


def write_text(path, text):
    """Writes a file, as a whole or not at all."""
    made = path.with_suffix(".part")
    made.write_text(text)
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
    lines = [f"# {folder.name}: what lowbit_matmul.py printed", ""]
    for threads in sorted({piece.threads for piece in pieces}):
        mine = [piece for piece in pieces if piece.threads == threads]
        lines += [f"## {threads} thread{'s' * (threads > 1)}", "", *targets_table(mine)]
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


@dataclasses.dataclass
class Result:
    """How a row of the target table did in a piece.

    Attributes:
        target: Ours and the rival.
        bar: What the rival's time / ours must reach.
        where: The piece.
        low, middle, high: Minimum, median and maximum of it.
        most: What it would be if ours took no more than the floor.
    """

    target: str
    bar: float
    where: str
    low: float
    middle: float
    high: float
    most: float

    @property
    def verdict(self):
        """No kernel meets a bar that the rival's time over our floor is below."""
        return "met" if self.middle >= self.bar else ABOVE if self.most < self.bar else MISSED


def results(pieces):
    """A result for each row and piece that it applies to."""
    for row in TARGETS:
        for piece in pieces:
            both = row.ours in piece.seconds and row.rival in piece.seconds
            if not both or piece.m not in row.rows:
                continue
            rival = piece.seconds[row.rival]
            ratios = np.divide(rival, piece.seconds[row.ours])
            yield Result(
                f"{row.ours} / {row.rival}",
                row.bar,
                piece.where,
                np.min(ratios),
                np.median(ratios),
                np.max(ratios),
                np.median(rival) / piece.floors[row.ours],
            )
    for bar, chosen in FLOOR_BARS:
        for piece in filter(chosen, pieces):
            if "w4a8 g32" not in piece.seconds:
                continue
            shares = np.divide(piece.floors["w4a8 g32"], piece.seconds["w4a8 g32"])
            low, middle, high = np.min(shares), np.median(shares), np.max(shares)
            yield Result("floor / w4a8 g32", 1 / bar, piece.where, low, middle, high, 1.0)


def table(*heads):
    """The first two lines of one."""
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]


def line(*cells):
    """A line of one."""
    texts = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
    return "| " + " | ".join(texts) + " |"


def targets_table(pieces):
    """Every result."""
    lines = table("target", "bar", "where", "min", "median", "max", "at the floor", "")
    return lines + [line(*dataclasses.astuple(r), r.verdict) for r in results(pieces)]


def spread(found):
    """Some results in words."""
    middles = [r.middle for r in found]
    met = sum(r.verdict == "met" for r in found)
    return f"{min(middles):.2f} to {max(middles):.2f}, {met} of {len(found)}"


def summary(folders):
    """How many results of each machine are met, then the same of each target."""
    lines = table("machine", "threads", "rows", "met", "missed, also at the floor", "missed")
    verdicts = ("met", ABOVE, MISSED)
    of_targets = {}
    for folder in folders:
        pieces = read_pieces(folder)
        for threads in sorted({piece.threads for piece in pieces}):
            found = list(results([piece for piece in pieces if piece.threads == threads]))
            counts = [sum(r.verdict == verdict for r in found) for verdict in verdicts]
            link = f"[{folder.name}]({folder.parent.name}/{folder.name}.md)"
            lines.append(line(link, threads, len(found), *counts))
            for r in found if threads == 1 else ():
                of_targets.setdefault((r.target, r.bar), {}).setdefault(folder.name, []).append(r)
    names = [folder.name for folder in folders]
    lines += ["", "One thread: the lowest and the highest median, and how many meet the bar.", ""]
    lines += table("target", "bar", *names)
    for (target, bar), machines in of_targets.items():
        cells = [spread(machines[name]) if name in machines else "" for name in names]
        lines.append(line(target, bar, *cells))
    return [*lines, ""]


def floors_table(pieces):
    """Our times as multiples of the floor, a column for each piece."""
    names = dict.fromkeys(name for piece in pieces for name in piece.floors)
    lines = table("", *(piece.where for piece in pieces))
    return lines + [line(name, *(piece.share(name) for piece in pieces)) for name in names]


def times_table(piece):
    """Milliseconds of every contestant."""
    lines = [f"\n## {piece.where}\n"]
    lines += table("contestant", "ms: min median max", "GMAC/s", "time / floor")
    for name, seconds in piece.seconds.items():
        middle = np.median(seconds)
        ends = f"{np.min(seconds) * 1e3:.3f} {middle * 1e3:.3f} {np.max(seconds) * 1e3:.3f}"
        speed = piece.m * np.prod(piece.shape) / middle / 1e9
        lines.append(line(name, ends, f"{speed:.1f}", piece.share(name)))
    return lines


def dequantize_table(shares):
    """The bandwidth of dequantize beside that of a copy."""
    lines = table("bits", "scales", "min", "median", "max", "")
    for name, ratios in shares.items():
        low, middle, high = np.min(ratios), np.median(ratios), np.max(ratios)
        lines.append(line(name, low, middle, high, "met" if middle >= 0.8 else MISSED))
    return lines


def write_json(path, value):
    """Writes a file, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rounded(value), indent=1) + "\n")


def rounded(value):
    """Five digits of every float."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
