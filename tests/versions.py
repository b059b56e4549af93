"""Corners of the matrix of versions: each in an environment of its own, the demo and real models.

    python tests/versions.py [--corners oldest,newest] [--quick] [--folder FOLDER] [--allow_missing]

Needs the interpreters that the corners name, as `python3.10` and the like, and a network for pip.
The demo runs on tfquant as pip installs it from this folder; the CNN, LSTM and attention tests of
`tests/end_to_end/` run on the folder. With `--quick`, one model of each kind.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Corner:
    """Versions that are installed together.

    Attributes:
        python: Version of Python.
        tensorflow: Version of TensorFlow, the newest of the minor one.
        keras: Likewise of Keras.
        numpy: Likewise of NumPy.
        without: Tests that need something newer, as `pytest -k` takes them, and why.
    """

    python: str
    tensorflow: str
    keras: str
    numpy: str
    without: tuple[str, str] = ("", "")


# Older ones note the casts of a policy as operations of the model, which then are nobody's layers.
HALF = ("half_precision", "float16 and bfloat16 policies, whose casts this Keras makes operations")

# Keras 3.10 says so of every functional model that it has loaded.
STRUCTURE = "ignore:The structure of `inputs`:UserWarning"

CORNERS = {
    "oldest": Corner("3.10", "2.18", "3.8", "1.26", HALF),
    "older": Corner("3.11", "2.19", "3.10", "2.0", HALF),
    "newer": Corner("3.12", "2.20", "3.12", "2.2"),
    "newest": Corner("3.13", "2.21", "3.15", "2.4"),
}

TESTS = ("tests/end_to_end/test_tflite.py", "tests/end_to_end/test_sequence.py")
QUICK = "plain_cnn or lstm or encoder"


def main() -> int:
    """Runs the corners, prints what became of each, and returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corners", default=",".join(CORNERS), help="names, with commas between")
    parser.add_argument("--quick", action="store_true", help="one model of each kind")
    parser.add_argument(
        "--folder", help="where environments are made and kept; a fresh one if none"
    )
    parser.add_argument("--allow_missing", action="store_true", help="pass without its Python")
    flags = parser.parse_args()
    names = flags.corners.split(",")
    if unknown := [name for name in names if name not in CORNERS]:
        parser.error(f"corners are {', '.join(CORNERS)}; received: {', '.join(unknown)}")
    found = {}
    with tempfile.TemporaryDirectory() as fresh:
        folder = pathlib.Path(flags.folder or fresh).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            start = time.time()
            found[name] = _run(CORNERS[name], folder / name, flags.quick)
            corner = CORNERS[name]
            print(
                f"{name}: Python {corner.python}, TensorFlow {corner.tensorflow}, Keras "
                f"{corner.keras}, NumPy {corner.numpy}: {found[name] or 'all well'} "
                f"({time.time() - start:.0f} s){_left_out(corner)}",
                flush=True,
            )
    missing = [name for name in names if _interpreter(CORNERS[name].python) is None]
    return sum(bool(found[n]) for n in names if not (flags.allow_missing and n in missing))


def _left_out(corner):
    return f"; left out: {corner.without[1]}" if corner.without[0] else ""


def _run(corner, folder, quick) -> str:
    """Returns what failed in a corner, "" for nothing."""
    interpreter = _interpreter(corner.python)
    if interpreter is None:
        return f"cannot be had here: there is no python{corner.python}"
    python = str(folder / "bin" / "python")
    if not os.path.exists(python):
        subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    pins = [f"tensorflow~={corner.tensorflow}.0", f"keras~={corner.keras}.0"]
    pins += [f"numpy~={corner.numpy}.0", "pytest", "pytest-xdist"]
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        environment.pop(name, None)
    without = f"not {corner.without[0]}" if corner.without[0] else ""
    chosen = " and ".join(filter(None, [f"({QUICK})" if quick else "", without]))
    steps = {
        "pip": [*install, f"{ROOT}[demo]", *pins],
        "the demo": [python, "-m", "tfquant", "demo", "--epochs", "1", "--output", "demo.tflite"],
        "the tests": [python, "-m", "pytest", "-q", "-W", STRUCTURE, *TESTS, "-k", chosen],
    }
    for what, command in steps.items():
        where = ROOT if what == "the tests" else folder
        done = subprocess.run(
            command, cwd=where, env=environment, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        if done.returncode:
            print(said[-6000:], file=sys.stderr)
            return f"{what} failed: {_blame(said)}"
        if what == "the tests":
            print(said.strip().splitlines()[-1], flush=True)
    return ""


def _interpreter(version):
    """Returns the path of a Python that runs, or `None`."""
    path = shutil.which(f"python{version}")
    if path and not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
        return path
    return None


def _blame(said):
    """Returns the line that names what is to blame: pip's on a conflict, or the last."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "FAILED", "E  "))]
    return (errors or lines or ["nothing was said"])[-1].strip()


if __name__ == "__main__":
    sys.exit(main())
