"""Low-bit matmuls against what anyone would pick instead, interleaved in one run.

    python benchmarks/lowbit_matmul.py --threads 1 --shapes 4096x4096 --rows 1,8 --save FOLDER
    python benchmarks/lowbit_matmul.py --dequantize --save FOLDER
    python benchmarks/lowbit_matmul.py --report FOLDER --markdown benchmarks/RESULTS.md

Every contestant's answer is checked before the clock starts. Contestants take turns, round by
round, and only ratios within a round are reported: rival's time / ours, as min, median and max over
the rounds. `floor` is our time over what this machine could reach, the larger of bytes over the
read bandwidth of that footprint and multiply-adds over the peak of their class, both measured
in the same run (custom_ops/bench/floor.cc).

Each combination of threads, shape and rows is a piece, a file of FOLDER, which measuring it again
replaces; so a table can be made bit by bit. `--alone COMMAND` runs a command beside the clock, such
as one that holds other programs off: the clock starts when it prints a line, and its input ends
with the piece.

Rivals need their packages: onnxruntime and onnx, ai-edge-litert and ai-edge-quantizer, faiss-cpu.
ggml takes part when TFQUANT_GGML_SOURCE (its `ggml` folder) and TFQUANT_GGML_BUILD (folder of
libggml*.so) are set. What is missing is listed and left out.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class Contestant:
    """`make(rows)` returns a call that multiplies that many rows, and its result as an array."""

    name: str
    make: object
    kind: str  # what it is compared as
    tolerance: float  # of the relative error against the float product


@dataclasses.dataclass
class Row:
    """A line of the target table: our contestant, the rival's, and the bar."""

    ours: str
    rival: str
    bar: float
    rows: tuple


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", default="1024x1024,4096x4096,4096x11008", help="KxN,...")
    parser.add_argument("--rows", default="1,8,64,512")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=20, help="at most, for each shape and M")
    parser.add_argument("--only", default="", help="words; a contestant's name must have one")
    parser.add_argument("--dequantize", action="store_true", help="time that instead")
    parser.add_argument("--save", help="folder for the pieces")
    parser.add_argument("--alone", help="command that runs while the clock does")
    parser.add_argument("--report", help="folder of pieces: print their tables, time nothing")
    parser.add_argument("--markdown", help="file whose generated part the report replaces")
    args = parser.parse_args()
    if args.report:
        return write_report(args.report, args.markdown)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    floor = Floor(args.threads)
    if args.dequantize:
        with alone(args.alone):
            floor.measure()
            shares = dequantize(floor, args)
        name = f"{args.threads}-dequantize.json"
        found = {"threads": args.threads, "machine": machine(floor), "dequantize": shares}
        if args.save:
            write_json(pathlib.Path(args.save) / name, found)
        print("\n".join(dequantize_table(shares)))
        return
    pieces = []
    for shape in args.shapes.split(","):
        k, n = map(int, shape.split("x"))
        contestants = make_contestants(k, n, args.threads, args.only)
        ready = {m: prepare(contestants, m, k) for m in map(int, args.rows.split(","))}
        made = []
        with alone(args.alone):
            floor.measure()
            for m, (calls, _) in ready.items():
                for cold in (False, True) if m == 1 else (False,):
                    seconds = race(calls, cold, args)
                    floors = {name: floor.seconds(name, m, k, n, cold) for name in seconds}
                    floors = {name: t for name, t in floors.items() if t}
                    form = (args.threads, [k, n], m, cold, machine(floor), seconds, floors)
                    made.append(Piece(*form))
        for piece in made:
            print("\n".join(times_table(piece)), flush=True)
            if args.save:
                piece.save(args.save)
        pieces += made
    print("\n".join(targets_table(pieces)))


@contextlib.contextmanager
def alone(command):
    """Waits until the command prints a line, and ends its input afterwards."""
    if not command:
        yield
        return
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, shell=True, **pipes) as process:
        if not process.stdout.readline():
            raise SystemExit(f"The command of --alone ended without a line: {command}")
        try:
            yield
        finally:
            process.stdin.close()


def prepare(contestants, m, k):
    """Each contestant's call, checked, and the results that the calls write to."""
    x = np.random.default_rng(m).normal(size=(m, k)).astype(np.float32)
    calls, held = {}, []
    for contestant in contestants:
        call, result = contestant.make(x)
        call()
        check(contestant, x, result())
        held.append(result)
        calls[contestant.name] = call
    return calls, held


def race(calls, cold, args):
    """Seconds of each contestant's call, round by round."""
    repeats = {}
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        # Long enough for the clock, so that a neighbour's burst does not decide.
        repeats[name] = 1 if cold else max(1, int(2e-3 / (time.perf_counter() - begin)))
    seconds = {name: [] for name in calls}
    begin = time.perf_counter()
    for i in range(args.rounds):
        for name, call in calls.items():
            if cold:
                flush()
            else:
                call()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
        if time.perf_counter() - begin > args.seconds and i >= 4:
            break
    return seconds


def check(contestant, x, y):
    """The answer must be the float product of the first columns, as far as the bits allow."""
    expected = contestant.expected(x)
    columns = expected.shape[1]
    error = np.linalg.norm(y[:, :columns] - expected) / np.linalg.norm(expected)
    if not error <= contestant.tolerance:
        raise SystemExit(f"{contestant.name} computes something else: relative error {error:.3f}")


# The tables -------------------------------------------------------------------------------------


def write_report(folder, markdown):
    """Prints the tables of every machine's pieces, or puts them between the marks of a file."""
    lines = []
    for machine in sorted(path for path in pathlib.Path(folder).iterdir() if path.is_dir()):
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


def machine_report(folder):
    """The tables of the pieces that one machine left in a folder called after its path."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    pieces = [Piece(**entry) for entry in found if "seconds" in entry]
    pieces.sort(key=lambda piece: (piece.threads, np.prod(piece.shape), piece.m, piece.cold))
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
    """A row for each bar and piece that it applies to: the rival's time / ours."""
    lines = ["| target | bar | where | min | median | max | |", "|---|---|---|---|---|---|---|"]
    for row in TARGETS:
        for piece in pieces:
            both = row.ours in piece.seconds and row.rival in piece.seconds
            if not both or piece.m not in row.rows:
                continue
            ratios = np.divide(piece.seconds[row.rival], piece.seconds[row.ours])
            low, middle, high = np.min(ratios), np.median(ratios), np.max(ratios)
            verdict = "met" if middle >= row.bar else "MISSED"
            name = f"{row.ours} / {row.rival} | {row.bar} | {piece.where}"
            lines.append(f"| {name} | {low:.2f} | {middle:.2f} | {high:.2f} | {verdict} |")
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


def dequantize(floor, args):
    """Bytes that dequantize writes in a second by those of a copy that writes as many."""
    from tfquant.lowbit.core import Core, aligned

    core, rng = Core(), np.random.default_rng(0)
    rows = columns = 4096
    # On a cache line, as TensorFlow allocates.
    out = aligned(rows * columns, np.float32).reshape(rows, columns)
    source = aligned(rows * columns, np.float32).reshape(rows, columns)
    out[:] = source[:] = 1
    cases = {
        "per tensor": (rows, columns),
        "per row": (1, columns),
        "per column": (rows, 1),
        "groups of 32": (1, 32),
    }
    copy = floor.copier(source, out)
    shares = {}
    for num_bits in (8, 4, 2, 1):
        packed = rng.integers(0, 256, (rows, columns * num_bits // 8), dtype=np.uint8)
        for name, (row_group, column_group) in {**cases, "codebook": (1, 64)}.items():
            scale = np.ones((-(-rows // row_group), -(-columns // column_group)), np.float32)
            book = np.arange(2.0**num_bits, dtype=np.float32) if name == "codebook" else None
            form = {"row_group": row_group, "column_group": column_group, "codebook": book}
            ratios = []
            for _ in range(args.rounds):
                start = time.perf_counter()
                core.dequantize(
                    packed,
                    scale,
                    num_bits=num_bits,
                    columns=columns,
                    threads=args.threads,
                    out=out,
                    **form,
                )
                ours = time.perf_counter() - start
                ratios.append(copy() / ours)
            shares[f"{num_bits} | {name}"] = ratios
    return shares


# The machine ------------------------------------------------------------------------------------


def last_cache():
    """Bytes of the last cache; 0 where Linux does not tell."""
    files = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(file.read_text().strip().rstrip("K")) << 10 for file in files), default=0)


# More than the caches hold.
COLD_BYTES = max(256 << 20, 2 * last_cache())


class Floor:
    """The peaks and bandwidths of this machine, by custom_ops/bench/floor.cc."""

    def __init__(self, threads):
        folder = tempfile.mkdtemp()
        out = f"{folder}/floor.so"
        source = str(ROOT / "custom_ops" / "bench" / "floor.cc")
        flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        subprocess.run([os.environ.get("CXX", "g++"), *flags, source, "-o", out], check=True)
        c = ctypes.CDLL(out)
        for name in ("products", "compute", "read", "copy"):
            getattr(c, f"tfquant_floor_{name}").restype = ctypes.c_double
        self._c, self.threads, self._reads, self.peaks = c, threads, {}, {}

    def measure(self):
        """The peaks, and forgets bandwidths that were measured before."""
        rounds = ctypes.c_int64(2_000_000)
        self._reads.clear()
        names = ["float", "integer", "integer, groups of 32", "bits"]
        names += ["integer by tiles", "integer, groups of 32 by tiles", "float by tiles"]
        for kind, name in enumerate(names):
            products = self._c.tfquant_floor_products(kind, rounds)
            if products:
                call = self._c.tfquant_floor_compute
                best = min(call(kind, self.threads, rounds) for _ in range(5))
                self.peaks[name] = self.threads * products / best

    def read(self, size):
        """Bytes a second of reading a footprint again and again."""
        size = max(64 << 10, 1 << (int(size) - 1).bit_length())
        if size not in self._reads:
            data = np.ones(size, np.uint8)
            repeats = max(1, (64 << 20) // size)
            call = self._c.tfquant_floor_read
            arguments = (ctypes.c_void_p(data.ctypes.data), ctypes.c_int64(size))
            best = min(call(*arguments, self.threads, repeats) for _ in range(7))
            self._reads[size] = size * repeats / best
        return self._reads[size]

    def copier(self, source, target):
        """A call that copies an array on all threads and returns its seconds."""
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (source, target)]
        call, size = self._c.tfquant_floor_copy, ctypes.c_int64(source.nbytes)
        return lambda: call(*pointers, size, self.threads)

    def describe(self):
        """The measurements in one line."""
        peaks = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in self.peaks.items())
        reads = ", ".join(
            f"{s >> 20} MB {self.read(s) / 1e9:.0f}" for s in (1 << 20, 16 << 20, COLD_BYTES)
        )
        return f"peak GMAC/s: {peaks}; read GB/s: {reads}"

    def seconds(self, name, m, k, n, cold):
        """The least time for one of our contestants; `None` for a rival."""
        classes = {
            "w8a8": (1.0, "integer"),
            "w4a8 channel": (0.5, "integer"),
            "w2a8 channel": (0.25, "integer"),
            "w8a8 g32": (1.0625, "integer, groups of 32"),
            "w4a8 g32": (0.5625, "integer, groups of 32"),
            "w4a8 g32x32": (0.5625, "integer, groups of 32"),
            "w2a8 g32": (0.3125, "integer, groups of 32"),
            "w4a16 g32": (0.5625, "float"),
            "w8a16": (1.0, "float"),
            "w1a1": (0.125, "bits"),
            "tf.matmul": (4.0, "float"),
        }
        name = name.removesuffix(" tf")
        if name not in classes:
            return None
        each, peak = classes[name]
        if m > 8 and name != "tf.matmul":  # tiles where this processor has them
            peak = f"{peak} by tiles" if f"{peak} by tiles" in self.peaks else peak
        size = each * k * n
        bandwidth = self.read(COLD_BYTES) if cold else self.read(size)
        return max(size / bandwidth, m * k * n / self.peaks[peak])


def flush(cache=[]):  # noqa: B006
    """Evicts what the caches hold."""
    if not cache:
        cache.append(np.ones(COLD_BYTES // 8))
    cache[0].sum()


def processor():
    """Name of the processor."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def machine(floor):
    """What the numbers are from."""
    from tfquant import lowbit

    path, threads = lowbit.doctor().path, floor.threads
    return f"{processor()}, path {path}, {threads} thread(s); {floor.describe()}"


# The contestants --------------------------------------------------------------------------------


def make_contestants(k, n, threads, only):
    """Ours, then the rivals that are installed; each with the weights it can hold."""
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(k, n)) / np.sqrt(k)).astype(np.float32)
    columns = min(n, 64)
    makers = [ours, tensorflow, onnxruntime, litert, ggml, faiss]
    words = [word for word in only.split(",") if word]
    contestants = []
    for maker in makers:
        try:
            for contestant in maker(
                weight, threads, lambda name: not words or any(w in name for w in words)
            ):
                if contestant.kind == "sign":
                    signs = np.where(weight[:, :columns] < 0, -1.0, 1.0)
                    contestant.expected = lambda x, s=signs: np.where(x < 0, -1.0, 1.0) @ s
                else:
                    contestant.expected = lambda x: x.astype(np.float64) @ weight[:, :columns]
                contestants.append(contestant)
        except (ImportError, NotAvailable) as error:
            print(f"# without {maker.__name__}: {error}")
    return contestants


class NotAvailable(Exception):
    """A rival is not here."""


def quantize_weight(weight, num_bits, group_size):
    """Symmetric, to nearest, the whole range in use."""
    k, n = weight.shape
    depth = group_size or k
    padded = np.pad(weight, ((0, -k % depth), (0, 0))).reshape(-1, depth, n)
    qmax = 2 ** (num_bits - 1) - 1
    scale = np.abs(padded).max(axis=1) / (qmax + 0.5) + 1e-12
    if num_bits == 2:
        scale = np.abs(padded).mean(axis=1) * 1.2
    q = np.clip(np.rint(padded / scale[:, None]), -qmax - 1, qmax).astype(np.int8)
    return q.reshape(-1, n)[:k], scale.astype(np.float32)


def ours(weight, threads, wanted):
    import tensorflow as tf

    from tfquant import lowbit
    from tfquant.lowbit.core import Core

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    core = Core()
    n = weight.shape[1]
    table = [
        ("w8a8", 8, 0, "per_row", 0.02),
        ("w8a8 g32", 8, 32, "per_group", 0.02),
        ("w4a8 g32", 4, 32, "per_row", 0.2),
        ("w4a8 g32x32", 4, 32, "per_group", 0.2),
        ("w4a8 channel", 4, 0, "per_row", 0.3),
        ("w2a8 g32", 2, 32, "per_group", 0.7),
        ("w2a8 channel", 2, 0, "per_row", 0.7),
        ("w4a16 g32", 4, 32, "float", 0.2),
        ("w8a16", 8, 0, "float", 0.02),
        ("w1a1", 1, 0, "per_row", 0.0),
    ]
    for name, num_bits, group_size, activations, tolerance in table:
        if not (wanted(name) or wanted(name + " tf")):
            continue
        if num_bits == 1:
            q, scale = np.where(weight < 0, -1, 1).astype(np.int8), np.ones((1, n), np.float32)
        else:
            q, scale = quantize_weight(weight, num_bits, group_size)
        packed = core.pack(q, scale, num_bits=num_bits, group_size=group_size)
        form = {"num_bits": num_bits, "group_size": group_size}
        kind = "sign" if num_bits == 1 else "real"

        def by_core(x, packed=packed, form=form, activations=activations):
            more = {"units": n, "activations": activations, "threads": threads}
            call, out = core.bound_matmul(x, packed, **form, **more)
            return call, lambda: out

        def by_op(x, packed=packed, form=form, activations=activations):
            weights = lowbit.PackedWeights(tf.constant(packed), **form, depth=len(weight), units=n)
            x, bias, held = tf.constant(x), tf.zeros((0,)), []
            module = lowbit.library.ops()
            more = form | {"units": n, "activations": activations}

            def call():
                held[:] = [module.tfquant_lowbit_matmul(x, weights.data, bias, **more)]

            return call, lambda: held[0].numpy()

        if wanted(name):
            yield Contestant(name, by_core, kind, tolerance)
        if name in ("w4a8 g32", "w4a16 g32", "w1a1") and wanted(name + " tf"):
            yield Contestant(name + " tf", by_op, kind, tolerance)


def tensorflow(weight, threads, wanted):
    import tensorflow as tf

    if not wanted("tf.matmul"):
        return
    w = tf.constant(weight)

    def make(x):
        x, held = tf.constant(x), []

        def call():
            held[:] = [tf.matmul(x, w)]

        return call, lambda: held[0].numpy()

    yield Contestant("tf.matmul", make, "real", 1e-4)


def onnxruntime(weight, threads, wanted):
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    k, n = weight.shape
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3

    def contestant(name, nodes, initializers, tolerance):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, k])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, n])
        constants = [numpy_helper.from_array(v, key) for key, v in initializers.items()]
        graph = helper.make_graph(nodes, "g", [x], [y], constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        session = ort.InferenceSession(
            onnx.shape_inference.infer_shapes(model).SerializeToString(), options
        )

        def make(x):
            binding = session.io_binding()
            out = np.empty((len(x), n), np.float32)
            binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
            binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
            return lambda: session.run_with_iobinding(binding), lambda: out

        return Contestant(name, make, "real", tolerance)

    for bits, accuracy, tolerance in ((4, 4, 0.2), (4, 0, 0.2), (8, 4, 0.02), (2, 4, 0.7)):
        name = f"ort {bits}b acc{accuracy}"
        if not wanted(name):
            continue
        q, scale = quantize_weight(weight, bits, 32)
        v = (q.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8).T.reshape(n, k // 32, 32)
        from tfquant.numerics import packing

        packed = packing.pack(v, bits)
        node = helper.make_node(
            "MatMulNBits",
            ["x", "q", "s"],
            ["y"],
            domain="com.microsoft",
            K=k,
            N=n,
            bits=bits,
            block_size=32,
            accuracy_level=accuracy,
        )
        try:
            yield contestant(
                name, [node], {"q": packed, "s": np.ascontiguousarray(scale.T)}, tolerance
            )
        except Exception as error:  # onnxruntime's exceptions have no common public base
            print(f"# without {name}: {str(error)[:150]}")
    if wanted("ort integer"):
        q, scale = quantize_weight(weight, 8, 0)
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
            helper.make_node("MatMulInteger", ["xq", "q", "xz"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["xs", "s"], ["xss"]),
            helper.make_node("Mul", ["real", "xss"], ["y"]),
        ]
        yield contestant("ort integer", nodes, {"q": q, "s": scale[0]}, 0.02)


def litert(weight, threads, wanted):
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    k, n = weight.shape
    table = [
        ("litert int8", recipe.dynamic_wi8c_afp32, 0.03),
        ("litert int4", recipe.dynamic_wi4c_afp32, 0.4),
        ("litert int4 b32", recipe.dynamic_wi4b32_afp32, 0.25),
        ("litert int2", recipe.dynamic_wi2c_afp32, 2.0),
    ]
    table = [line for line in table if wanted(line[0])]
    if not table:
        return
    folder = pathlib.Path(tempfile.mkdtemp())
    model = tf.keras.Sequential([tf.keras.Input((k,)), tf.keras.layers.Dense(n, use_bias=False)])
    model.set_weights([weight])
    with contextlib.redirect_stdout(io.StringIO()):
        converted = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (folder / "float.tflite").write_bytes(converted)
    for name, make_recipe, tolerance in table:
        file = str(folder / f"{name}.tflite")
        tool = quantizer.Quantizer(str(folder / "float.tflite"))
        tool.load_quantization_recipe(make_recipe())
        with contextlib.redirect_stdout(io.StringIO()):
            tool.quantize().export_model(file)

        def make(x, file=file):
            interpreter = Interpreter(file, num_threads=threads)
            position = interpreter.get_input_details()[0]["index"]
            interpreter.resize_tensor_input(position, x.shape)
            interpreter.allocate_tensors()
            interpreter.set_tensor(position, x)
            out = interpreter.get_output_details()[0]["index"]
            return interpreter.invoke, lambda: interpreter.get_tensor(out)

        yield Contestant(name, make, "real", tolerance)


def ggml(weight, threads, wanted):
    source, built = os.environ.get("TFQUANT_GGML_SOURCE"), os.environ.get("TFQUANT_GGML_BUILD")
    if not source or not built:
        raise NotAvailable("TFQUANT_GGML_SOURCE and TFQUANT_GGML_BUILD are not set")
    table = [("ggml q4_0", 0.2), ("ggml q4_k", 0.2), ("ggml q8_0", 0.02), ("ggml tq2_0", 0.95)]
    table = [line for line in table if wanted(line[0])]
    if not table:
        return
    out_file = f"{tempfile.mkdtemp()}/rival.so"
    libraries = [f"-L{built}", f"-Wl,-rpath,{built}", "-lggml", "-lggml-base", "-lggml-cpu"]
    command = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", f"-I{source}/include"]
    file = str(ROOT / "benchmarks" / "ggml_rival.cc")
    subprocess.run([*command, file, "-o", out_file, *libraries], check=True)
    c = ctypes.CDLL(out_file)
    c.rival_new.restype = ctypes.c_void_p
    k, n = weight.shape
    rows = np.ascontiguousarray(weight.T)
    for name, tolerance in table:

        def make(x, name=name):
            out = np.empty((len(x), n), np.float32)
            pointer = c.rival_new(
                name.removeprefix("ggml ").encode(),
                ctypes.c_void_p(rows.ctypes.data),
                k,
                n,
                len(x),
                ctypes.c_void_p(x.ctypes.data),
                threads,
            )
            if not pointer:
                raise NotAvailable(f"{name} does not run")
            handle = ctypes.c_void_p(pointer)

            def result():
                c.rival_result(handle, ctypes.c_void_p(out.ctypes.data))
                return out

            return lambda: c.rival_run(handle), result

        yield Contestant(name, make, "real", tolerance)


def faiss(weight, threads, wanted):
    if not wanted("faiss"):
        return
    import faiss as library

    library.omp_set_num_threads(threads)
    k, n = weight.shape
    codes = np.packbits(np.ascontiguousarray(weight.T) < 0, axis=1)

    def make(x):
        out = np.empty((len(x), n), np.int32)
        queries = np.empty((len(x), k // 8), np.uint8)

        def call():
            queries[:] = np.packbits(x < 0, axis=1)
            library.hammings(
                library.swig_ptr(queries),
                library.swig_ptr(codes),
                len(x),
                n,
                k // 8,
                library.swig_ptr(out),
            )

        return call, lambda: k - 2 * out

    yield Contestant("faiss", make, "sign", 0.0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
