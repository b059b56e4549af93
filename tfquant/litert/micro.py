"""Running a `.tflite` file on TensorFlow Lite Micro's kernels, in PyPI's `tflite-micro`."""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

from tfquant.litert.flatbuffer import File
from tfquant.litert.interpreter import rows_of

EXTRA = "TensorFlow Lite Micro's interpreter is needed: pip install 'tfquant[tflm]'"

# Bytes that model and arena are aligned to.
ALIGNMENT = 16

# Bytes beside the tensors in an arena that is large enough for any file: what kernels note.
_NOTES = 1 << 20
_NOTES_EACH = 1 << 14

_TAKEN = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")


def is_there() -> bool:
    """Whether the interpreter is installed."""
    return importlib.util.find_spec("tflite_micro") is not None


def run(content: bytes, rows: list[np.ndarray], progress=lambda: None) -> list[np.ndarray]:
    """Runs a file row by row; see `tfquant.litert.interpreter.run`.

    Raises:
        ImportError: If the interpreter is not installed.
        RuntimeError: If it does not run the file, with what it says.
    """
    file = File(content)
    batch = (*file.shape(file.inputs[0]), 1)[0]
    collected = [[] for _ in file.outputs]
    with _heard():
        interpreter = _interpreter(content, _enough(file))
        for start in range(0, len(rows[0]), batch):
            count = min(batch, len(rows[0]) - start)
            for number, array in enumerate(rows):
                part = array[start : start + batch]
                padding = [(0, batch - count)] + [(0, 0)] * (part.ndim - 1)
                interpreter.set_input(np.ascontiguousarray(np.pad(part, padding)), number)
            interpreter.invoke()
            for number, values in enumerate(collected):
                values.append(rows_of(interpreter.get_output(number), batch)[:count].copy())
            progress()
    return [np.concatenate(values) for values in collected]


def error(content: bytes) -> Exception | None:
    """Returns what TensorFlow Lite Micro raises when it loads a file and runs it on zeros."""
    file = File(content)
    try:
        run(content, [np.zeros(file.shape(i), file.dtype(i)) for i in file.inputs])
    except (RuntimeError, ValueError) as raised:
        return raised
    return None


def arena(content: bytes) -> int:
    """Returns the bytes of the smallest arena that a file runs in, a multiple of 16.

    Of large files it is what the interpreter says that it has taken; small ones take more while
    their tensors find their places.

    Raises:
        ImportError: If the interpreter is not installed.
        RuntimeError: If it does not run the file, with what it says.
    """
    if not is_there():
        raise ImportError(f"{EXTRA}.")
    done, said = _alone(content, _enough(File(content)))
    total = _total(said)
    if done or total is None:
        raise RuntimeError(_told(done, said))
    high = low = -(-total // ALIGNMENT)
    while _alone(content, high * ALIGNMENT)[0]:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _alone(content, middle * ALIGNMENT)[0]:
            low = middle
        else:
            high = middle
    return high * ALIGNMENT


def error_alone(content: bytes) -> Exception | None:
    """Returns the same as `error`, of a file that may end the process that runs it."""
    done, said = _alone(content, _enough(File(content)))
    return RuntimeError(_told(done, said)) if done or _total(said) is None else None


def _total(said):
    """Returns the bytes that are taken of an arena, `None` where that was not said."""
    return {what: int(count) for what, count in _TAKEN.findall(said)}.get("total")


def _told(done, said):
    """Returns in words how a file ended that did not run."""
    words = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in words if not line.startswith(("File ", "Traceback"))]
    ended = f"ended by signal {-done}" if done < 0 else "refused"
    return f"TensorFlow Lite Micro {ended}: {' '.join(told[:3])[:300]}"


def _alone(content, size):
    """Runs a file in a process of its own; returns how it ends, and what it says."""
    script = pathlib.Path(__file__).with_name("measure_arena.py")
    command = [sys.executable, "-I", str(script), str(size)]
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    return done.returncode, done.stderr.decode(errors="replace")


def _interpreter(content, size):
    try:
        runtime = importlib.import_module("tflite_micro").runtime
    except ImportError as missing:
        raise ImportError(f"{EXTRA}. Received: {missing}") from missing
    return runtime.Interpreter.from_bytes(content, arena_size=size)


def _enough(file):
    """Returns the size of an arena in which nothing computed needs to share its place."""
    tensors = [i for i in range(len(file.subgraph.tensors)) if not file.is_constant(i)]
    sizes = (int(np.prod(file.shape(i))) * file.dtype(i).itemsize for i in tensors)
    return 2 * sum(sizes) + _NOTES + _NOTES_EACH * (len(tensors) + len(file.ops))


@contextlib.contextmanager
def _heard():
    """Keeps what C++ writes to the standard error, and has it at the end of what is raised.

    The interpreter's own errors say nothing of why.
    """
    with tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except RuntimeError as raised:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            words = " ".join(line.strip() for line in lines if line.strip())
            raise RuntimeError(f"{raised}: {words[-500:]}" if words else str(raised)) from raised
        finally:
            os.dup2(kept, 2)
            os.close(kept)
