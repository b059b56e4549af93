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


SEARCH = ("search", "model.keras", "--calibration=data.npz", "--effort=fast")


def test_search_writes_the_file_that_keeps_the_budget(here, capsys):  # noqa: F811
    flags = ("--bytes=4200", "--output=out.tflite", "--save_recipe=recipe.yaml")
    assert here_and_now(*SEARCH, *flags) == 0
    out = capsys.readouterr().out
    size = (here / "out.tflite").stat().st_size
    assert size <= 4200 and f"{size:,} bytes" in out and "Wrote recipe.yaml" in out
    again = ("quantize", "model.keras", "--calibration=data.npz", "--recipe=recipe.yaml")
    assert here_and_now(*again, "--effort=fast", "--output=again.tflite") == 0
    assert (here / "again.tflite").stat().st_size == size


def test_a_drop_that_rows_do_not_promise_exits_with_3(here, capsys):  # noqa: F811
    flags = ("--max_drop=0.5", "--validation=data.npz", "--json")
    assert here_and_now(*SEARCH, *flags) == 0
    assert json.loads(capsys.readouterr().out)["promise"]["kept"]
    assert here_and_now(*SEARCH, "--max_drop=0", "--validation=data.npz", "--json") in (0, 3)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--bytes=10",),
        ("--bytes=none",),
        ("--bops=-1",),
        ("--max_drop=0.1",),
        ("--max_drop=2", "--validation=data.npz"),
        ("--bytes=4200", "--save_recipe=recipe.txt"),
        ("--bytes=4200", "--latency=1"),
    ],
)
def test_budgets_that_cannot_be_kept_are_told_in_one_line(here, capfd, flags):  # noqa: F811
    before = {path: path.read_bytes() for path in here.iterdir()}
    assert here_and_now(*SEARCH, *flags) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("tfquant: error: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in here.iterdir()} == before


AUTO = ("auto", "model.keras", "--calibration=data.npz", "--validation=data.npz")


def test_auto_writes_what_holds_and_tells_the_way(here, capsys):  # noqa: F811
    assert here_and_now(*AUTO, "--max_drop=0.5", "--output=out.tflite") == 0
    out = capsys.readouterr().out
    assert "holds" in out and "Wrote out.tflite" in out
    assert f"{(here / 'out.tflite').stat().st_size:,} bytes" in out
    assert here_and_now(*AUTO, "--target=0", "--json", "--save_recipe=recipe.json") == 0
    assert json.loads(capsys.readouterr().out)["holds"] and (here / "recipe.json").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--target=1", "--max_drop=0.1"),
        ("--target=0.999999",),
        ("--target=0", "--bytes=4000"),
        ("--bytes=10",),
        ("--max_drop=none",),
        ("--validation=anonymous.npz",),
    ],
)
def test_targets_that_cannot_be_are_told_in_one_line(here, capfd, flags):  # noqa: F811
    before = {path: path.read_bytes() for path in here.iterdir()}
    assert here_and_now(*AUTO, *flags) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("tfquant: error: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_what_may_be_asked_for_is_what_there_is():
    assert tfquant_cli.MODES == MODES
    assert np.all([c.example.startswith(f"tfquant {c.name}") for c in tfquant_cli.COMMANDS])
