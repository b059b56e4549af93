"""What memory a file takes: `python peak.py FILE THREADS` prints it in bytes.

Run as a file, without tfquant around it: TensorFlow alone takes more than most models.
"""

import importlib
import os
import pathlib
import runpy
import subprocess
import sys


def peak_memory(path, threads: int) -> int:
    """Returns how far the resident set of a fresh process rises to load a file and run it: bytes.

    Raises:
        ValueError: If the file does not run. Damage may end the process by a signal.
    """
    command = [sys.executable, __file__, os.fspath(path), str(threads)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        *_, words = ["", *run.stderr.strip().splitlines()]
        words = f"signal {-run.returncode}" if run.returncode < 0 else words
        raise ValueError(f"A file that runs is expected. Received: '{path}', which ends in {words}")
    return int(run.stdout.split()[-1])


def main(path, threads) -> None:
    """Prints what one file takes."""
    open_file = runpy.run_path(str(pathlib.Path(__file__).with_name("runtimes.py")))["open_file"]
    is_onnx = pathlib.Path(path).suffix.lower() == ".onnx"
    importlib.import_module("onnxruntime" if is_onnx else "ai_edge_litert.interpreter")
    before = _peak()
    open_file(path, int(threads))()
    print(_peak() - before)


def _peak():
    """Returns the largest resident set of this process so far, in bytes."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        import resource  # Not on Windows, where this is all that needs it.

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts into `ru_maxrss` what started the process, too.
    (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
