"""Times: latency of two files in LiteRT, and how long quantizing and converting takes.

Other programs share the machine, so that only ratios of interleaved runs mean something.

    python benchmarks/clock.py DATA MODEL TOOL   runs one tool once, in a fresh process, and prints
                                                 seconds and predictions as JSON
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from cases import CASES, open_loader
from device import Runner, stock_int8

TOOLS = ("stock", "verified", "unverified")
LATENCY_ROUNDS = 25
SECONDS_PER_ROUND = 0.2
WARM_UP = 5
CHECKED_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Ratios:
    """Ratios of interleaved runs, ours by stock.

    Attributes:
        low, median, high: Of the rounds.
        ours, stock: Median seconds, as a matter of interest.
    """

    low: float
    median: float
    high: float
    ours: float
    stock: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def latency(ours: bytes, stock: bytes, rows, answers, num_threads: int) -> Ratios:
    """Compares the latency of two files, both interpreters in one process and warm.

    A round runs the two in turns for a while, who goes first changing; its ratio is that of the
    fastest call of each, the one that other programs disturbed least.

    Args:
        ours: Our file.
        stock: The file of the stock converter.
        rows: Real inputs.
        answers: What each file returned for `rows` when it was scored.
        num_threads: Threads of each interpreter.

    Raises:
        ValueError: If a file returns something else than when it was scored.
    """
    runners = [Runner(content, num_threads) for content in (ours, stock)]
    for runner, expected in zip(runners, answers, strict=True):
        if not np.array_equal(runner(rows[:CHECKED_ROWS])[0], expected[:CHECKED_ROWS]):
            raise ValueError("A file must return what it returned when it was scored.")
        runner.interpreter.set_tensor(runner.input["index"], runner.integers(rows[:1]))
    invoke = [runner.interpreter.invoke for runner in runners]
    for _ in range(WARM_UP):
        once = [_seconds(function) for function in invoke]
    pairs = max(3, round(SECONDS_PER_ROUND / sum(once)))
    fastest = []
    for _ in range(LATENCY_ROUNDS):
        seconds = [[], []]
        for pair in range(pairs):
            for which in (0, 1) if pair % 2 else (1, 0):
                seconds[which].append(_seconds(invoke[which]))
        fastest.append([min(part) for part in seconds])
    return ratios(fastest)


def conversions(data: str, case, expected, rounds: int, step) -> dict[str, Ratios]:
    """Compares quantize + calibrate + convert with stock quantization, in fresh processes.

    Each process imports TensorFlow, loads model and rows, and then times one tool once: whoever
    quantizes a model does it once, so tracing counts. The order of the tools moves on by one in
    each round.

    Args:
        data: The data folder.
        case: The model.
        expected: Dict from tool to the predictions of its file when it was scored.
        rounds: Number of rounds.
        step: Called with a description before each run.

    Returns:
        Dict from `"verified"` and `"unverified"` to ratios by stock.

    Raises:
        ValueError: If a file predicts something else than when it was scored.
    """
    seconds = {tool: [] for tool in TOOLS}
    for number in range(rounds):
        for tool in TOOLS[number % 3 :] + TOOLS[: number % 3]:
            step(f"{case.name}: round {number + 1}, {tool}")
            command = [sys.executable, __file__, data, case.name, tool]
            found = subprocess.run(command, capture_output=True, text=True)
            if found.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{found.stderr[-2000:]}")
            result = json.loads(found.stdout.splitlines()[-1])
            right = np.equal(result["predictions"], expected[tool][:CHECKED_ROWS])
            # Sums in another order may turn a close call.
            if right.sum() < CHECKED_ROWS - 1:
                raise ValueError(f"{tool} must write the file that was scored.")
            seconds[tool].append(result["seconds"])
    return {
        tool: ratios(list(zip(seconds[tool], seconds["stock"], strict=True)))
        for tool in ("verified", "unverified")
    }


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratios(pairs) -> Ratios:
    """Returns the ratios of pairs of seconds, ours and stock."""
    ours, stock = np.asarray(pairs, np.float64).T
    each = ours / stock
    middle = [float(np.median(part)) for part in (each, ours, stock)]
    return Ratios(float(each.min()), middle[0], float(each.max()), *middle[1:])


def _once(data: str, name: str, tool: str) -> dict:
    """Times one tool on one model."""
    import tensorflow as tf

    import tfquant as tfq

    del tf
    load = open_loader(data)
    (case,) = (case for case in CASES if case.name == name)
    calibration, rows, _ = case.rows(load)
    model = case.model(load)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        start = time.perf_counter()
        if tool == "stock":
            content = stock_int8(model, calibration)
            with open(path, "wb") as file:
                file.write(content)
        else:
            q = tfq.quantize_model(model, "w8a8")
            tfq.calibrate(q, calibration, progress=False)
            tfq.to_tflite(q, path, verify=tool == "verified", progress=False)
        seconds = time.perf_counter() - start
        with open(path, "rb") as file:
            scores = Runner(file.read())(rows[:CHECKED_ROWS])[0]
    return {"seconds": seconds, "predictions": scores.argmax(-1).tolist()}


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[3] not in TOOLS:
        sys.exit(f"usage: clock.py DATA MODEL {'|'.join(TOOLS)}")
    print(json.dumps(_once(*sys.argv[1:])))
