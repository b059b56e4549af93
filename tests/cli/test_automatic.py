"""The commands that measure and search, as a user of the shell meets them."""

import json

import numpy as np
import pytest
from test_cli import folder, here, here_and_now  # noqa: F401

import tfquant_cli
from tfquant.sensitivity import MODES

SENSITIVITY = ("sensitivity", "model.keras", "--calibration=data.npz")


def test_sensitivity_shows_a_table_and_draws_it(here, capsys):  # noqa: F811
    flags = ("--choices=w8a8,W3A8,float", "--validation=data.npz", "--plot=plot.svg")
    assert here_and_now(*SENSITIVITY, *flags, "--cache=figures.jsonl") == 0
    out = capsys.readouterr().out
    assert "w3a8 dB" in out and "w3a8 accuracy" in out and out.endswith("Wrote plot.svg\n")
    assert (here / "plot.svg").read_text().startswith("<svg")
    assert here_and_now(*SENSITIVITY, *flags, "--cache=figures.jsonl", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in record["layers"]} == {"conv", "head"}
    assert record["choices"] == ["w8a8", "w3a8"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--choices=w9a9z",),
        ("--choices=float",),
        ("--choices=w8a8,w8a8",),
        ("--mode=two",),
        ("--plot=plot.png",),
        ("--plot=data.npz",),
        ("--cache=data.npz",),
        ("--validation=anonymous.npz",),
        ("--validation=none.npz",),
    ],
)
def test_mistakes_are_told_in_one_line(here, capfd, flags):  # noqa: F811
    before = {path: path.read_bytes() for path in here.iterdir()}
    assert here_and_now(*SENSITIVITY, *flags) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("tfquant: error: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_what_may_be_asked_for_is_what_there_is():
    assert tfquant_cli.MODES == MODES
    assert np.all([c.example.startswith(f"tfquant {c.name}") for c in tfquant_cli.COMMANDS])
