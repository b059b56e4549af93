"""Low-bit matmuls against what anyone would pick instead, interleaved in one run.

    python benchmarks/lowbit_matmul.py --threads 1 --shapes 4096x4096 --rows 1,8 --save FOLDER
    python benchmarks/lowbit_matmul.py --dequantize --save FOLDER
    python benchmarks/lowbit_matmul.py --report FOLDER --markdown benchmarks/RESULTS.md

Every contestant's answer is checked before the clock starts. Contestants take turns, round by
round, and only ratios within a round are reported: rival's time / ours, as min, median and max over
the rounds. `floor` is the least time that this machine could take: the larger of bytes over the
read bandwidth of that footprint and multiply-adds over the peak of their class, both measured
in the same run (custom_ops/bench/floor.cc), and of an eager op TensorFlow's own time for a call.
`cold` reads the weights from memory: the caches are emptied, then a small twin of the contestant is
called, so that the code is there, as it is in a network.

Each combination of threads, shape and rows is a piece, a file of FOLDER, which measuring it again
replaces; so a table can be made bit by bit. `--alone COMMAND` runs a command beside the clock, such
as one that holds other programs off: the clock starts when it prints a line, and its input ends
with the piece.

Rivals need their packages: onnxruntime and onnx, ai-edge-litert and ai-edge-quantizer, faiss-cpu.
ggml takes part when TFQUANT_GGML_SOURCE (its `ggml` folder) and TFQUANT_GGML_BUILD (folder of
libggml*.so) are set; larq-compute-engine when TFQUANT_LARQ_PYTHON is (a Python of an environment of
its own, see larq_rival.py). TFQUANT_BEFORE names a library made of another commit, which takes part
as "before ...". What is missing is listed and left out.
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from contestants import make_contestants
from floor import ROOT, Floor, flush, machine
from pieces import Piece, dequantize_table, targets_table, times_table, write_json, write_report

TWIN = (256, 64)  # K and N of the small twins


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
        # What calls write to must stay: some know it by its address only.
        small = make_contestants(*TWIN, args.threads, args.only)
        twins, _kept = prepare(small, 1, TWIN[0])
        made = []
        with alone(args.alone):
            floor.measure()
            floor.eager = eager_seconds()
            for m, (calls, _) in ready.items():
                for cold in (False, True) if m == 1 else (False,):
                    seconds = race(calls, twins if cold else None, args)
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


def race(calls, twins, args):
    """Seconds of each contestant's call, round by round; cold if there are `twins`."""
    repeats = {}
    for name, call in calls.items():
        call()
        # Long enough for the clock, so that a neighbour's burst does not decide.
        repeats[name] = 1 if twins else max(1, int(2e-3 / clock(call, 1)))
    seconds = {name: [] for name in calls}
    begin = time.perf_counter()
    for i in range(args.rounds):
        for name, call in calls.items():
            if twins:
                flush()
                twins[name]()
            else:
                call()
            seconds[name].append(clock(call, repeats[name]) / repeats[name])
        if time.perf_counter() - begin > args.seconds and i >= 4:
            break
    return seconds


def clock(call, repeats):
    """Seconds of so many calls."""
    if hasattr(call, "seconds"):
        return call.seconds(repeats)
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - begin


def eager_seconds(calls=2000):
    """The least that a call of an eager op takes, by one that does nothing."""
    import tensorflow as tf

    x = tf.zeros((1, 1))
    return min(clock(lambda: tf.raw_ops.Identity(input=x), calls) for _ in range(5)) / calls


def check(contestant, x, y):
    """The answer must be the float product of the first columns, as far as the bits allow."""
    expected = contestant.expected(x)
    columns = expected.shape[1]
    error = np.linalg.norm(y[:, :columns] - expected) / np.linalg.norm(expected)
    if not error <= contestant.tolerance:
        raise SystemExit(f"{contestant.name} computes something else: relative error {error:.3f}")


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


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
