"""Each example runs, in a fresh process, and ends as its reader hopes."""

import os
import pathlib
import subprocess
import sys

import pytest

import tfquant_cli

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# What is printed near the end.
ENDINGS = {
    "choose_layers": "marked model",
    "custom_layer": "the outputs are the same: True",
    "mixed_inputs": "0 of 384 values differ on 128 rows",
    "packed_mlp": "differing values of the file: 0",
    "ptq_mobilenet": "weights: random",
    "qat_digits": "trained 0.9",
    "qat_workers": "1 workers, accuracy",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    package = pathlib.Path(tfquant_cli.__file__).parent
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert ENDINGS[path.stem] in done.stdout
