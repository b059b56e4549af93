"""`benchmark`: how long files take, in turn, and what memory."""

import dataclasses
import os
import time

import numpy as np
from rich.progress import Progress
from rich.text import Text

from tfquant.nodes.extra import check as check_extra
from tfquant.report import Printable, plain_table
from tfquant.speed.peak import peak_memory
from tfquant.speed.runtimes import RUNTIMES, open_file

# Runs of each file before any is timed.
WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class FileSpeed:
    """How one file ran with one number of threads.

    Attributes:
        path: The file.
        runtime: What ran it.
        threads: How many threads a kernel could take.
        bytes: Size of the file.
        milliseconds: Of one run: `(least, median, most)`.
        ratio: Median by that of the first file with as many threads.
        peak_bytes: How far the resident set of a process of its own rises to load and run it.
    """

    path: str
    runtime: str
    threads: int
    bytes: int
    milliseconds: tuple[float, float, float]
    ratio: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class SpeedReport(Printable):
    """How several files ran, in turn.

    Attributes:
        layers: A `FileSpeed` for each file and number of threads.
        runs: Timed runs of each.
        processors: Processors of the machine.
    """

    layers: list[FileSpeed]
    runs: int
    processors: int

    def parts(self):
        """Yields the table, and what it is of."""
        table = plain_table()
        table.add_column("file", overflow="fold")
        table.add_column("runtime")
        for name in ("threads", "KiB", "min ms", "median ms", "max ms", "of first", "peak MiB"):
            table.add_column(name, justify="right")
        for x in self.layers:
            least, median, most = (f"{n:.3f}" for n in x.milliseconds)
            row = f"{x.bytes / 1024:.0f}", least, median, most, f"{x.ratio:.2f}"
            peak = f"{x.peak_bytes / 2**20:.1f}"
            table.add_row(Text(x.path), x.runtime, str(x.threads), *row, peak)
        yield table
        yield Text(
            f"{self.runs} runs each, in turn, on random inputs; {self.processors} processors. "
            "Times on another machine, and on a phone above all, are others."
        )


def benchmark(paths, *, threads=(1, 2), runs: int = 50, progress: bool = True) -> SpeedReport:
    """Times files on random inputs: each once, then each again, so that all meet the same machine.

    Args:
        paths: A `.tflite` or `.onnx` file, or a list of them; ratios are to the first.
        threads: How many threads a kernel may take: a number, or several.
        runs: Timed runs of each file.
        progress: Whether to show a progress bar.

    Returns:
        `SpeedReport`; print it.

    Raises:
        ImportError: If there is an `.onnx` file and ONNX Runtime is not installed.
        OSError: If a file cannot be read.
        ValueError: If one is of no kind that is known or does not run, or a number is not positive.

    Example:

    ```python
    tfq.benchmark(["float.tflite", "model.tflite", "model.onnx"], threads=1)
    ```
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    threads = [threads] if isinstance(threads, int) else list(threads)
    if not paths or not threads or min(*threads, runs) < 1:
        raise ValueError(
            "Files, and positive numbers of threads and runs, are expected. Received: "
            f"paths={paths}, threads={threads}, runs={runs}."
        )
    _check(paths)
    found = []
    with Progress(transient=True, disable=not progress) as bar:
        total = len(threads) * len(paths) * (runs + WARM_UP + 1)
        task = bar.add_task("Timing", total=total)
        for count in threads:
            peaks = [(peak_memory(path, count), bar.advance(task))[0] for path in paths]
            seconds = _in_turn(paths, count, runs, lambda: bar.advance(task))
            first = float(np.median(seconds[0]))
            for path, peak, times in zip(paths, peaks, seconds, strict=True):
                median = float(np.median(times))
                found.append(
                    FileSpeed(
                        path=os.fspath(path),
                        runtime=RUNTIMES[_ending(path)].runtime,
                        threads=count,
                        bytes=os.path.getsize(path),
                        milliseconds=tuple(1e3 * x for x in (min(times), median, max(times))),
                        ratio=median / first,
                        peak_bytes=peak,
                    )
                )
    return SpeedReport(found, runs, os.cpu_count() or 1)


def _check(paths):
    """Raises if a file is not there, or of no kind that can be timed."""
    for path in paths:
        if _ending(path) not in RUNTIMES:
            raise ValueError(f"A .tflite or .onnx file is expected. Received: '{path}'.")
        os.stat(path)
    if any(_ending(path) == ".onnx" for path in paths):
        check_extra()


def _in_turn(paths, threads, runs, advance):
    """Returns the seconds of each run of each file."""
    files, seconds = [open_file(path, threads) for path in paths], [[] for _ in paths]
    for number in range(runs + WARM_UP):
        for file, times in zip(files, seconds, strict=True):
            start = time.perf_counter()
            file()
            if number >= WARM_UP:
                times.append(time.perf_counter() - start)
            advance()
    return seconds


def _ending(path):
    return os.path.splitext(path)[1].lower()
