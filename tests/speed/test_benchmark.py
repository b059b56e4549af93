"""Files timed in turn, in LiteRT and ONNX Runtime."""

import importlib
import json
import os
import pathlib
import sys

import keras
import pytest
from keras import layers

import tfquant as tfq
import tfquant_cli
from tfquant.speed import peak


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a small and a large network as `.tflite`, and the small one as `.onnx`."""
    folder = tmp_path_factory.mktemp("files")
    for name, width in (("small", 16), ("large", 2000)):
        x = keras.Input((64,))
        q = tfq.quantize_model(keras.Model(x, layers.Dense(width)(layers.Dense(width)(x))), "w8")
        tfq.to_tflite(q, folder / f"{name}.tflite", verify=False, progress=False)
    return folder


def test_files_are_timed_and_weighed(folder):
    paths = [folder / "small.tflite", folder / "large.tflite"]
    report = tfq.benchmark(paths, threads=[1, 2], runs=7, progress=False)
    assert [(pathlib.Path(x.path).stem, x.threads) for x in report.layers] == [
        *(("small", 1), ("large", 1)),
        *(("small", 2), ("large", 2)),
    ]
    for x in report.layers:
        least, median, most = x.milliseconds
        assert 0 < least <= median <= most
        assert x.bytes == pathlib.Path(x.path).stat().st_size and x.runtime == "LiteRT"
    small, large = report.layers[:2]
    assert small.ratio == 1 and large.ratio == large.milliseconds[1] / small.milliseconds[1]
    # The large one reads 4 MB of weights, the small one 1 kB.
    assert large.ratio > 1 and large.peak_bytes > small.peak_bytes + 3e6


def test_onnx_runtime_s_files_run_beside_litert_s(folder, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra tfquant[onnx]: onnx, onnxruntime")
    x = keras.Input((64,))
    q = tfq.quantize_model(keras.Model(x, layers.Dense(16)(x)), "w8")
    tfq.to_onnx(q, tmp_path / "m.onnx", verify=False, progress=False)
    paths = [tmp_path / "m.onnx", folder / "small.tflite"]
    report = tfq.benchmark(paths, threads=1, runs=3, progress=False)
    assert [x.runtime for x in report.layers] == ["ONNX Runtime", "LiteRT"]


def test_it_needs_nothing_that_windows_does_not_have(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    importlib.reload(peak)
    assert tfq.benchmark(folder / "small.tflite", threads=1, runs=2, progress=False).layers


def test_the_command_prints_json(folder, capfd):
    files = [str(folder / "small.tflite"), str(folder / "large.tflite")]
    assert tfquant_cli.main(["benchmark", *files, "--threads", "1", "--runs", "3", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["report"] == "SpeedReport" and printed["runs"] == 3
    assert [x["path"] for x in printed["layers"]] == files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.txt", b"", r"\.tflite or \.onnx file is expected.*m\.txt"),
        ("m.tflite", b"", r"file that runs is expected.*m\.tflite"),
        ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(range(200)), r"file that runs.*m\.tflite"),
    ],
)
def test_other_files_are_named(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        tfq.benchmark(tmp_path / name, progress=False)


def test_numbers_that_are_none_are_named(folder):
    with pytest.raises(ValueError, match=r"positive numbers.*runs=0"):
        tfq.benchmark(folder / "small.tflite", runs=0, progress=False)
    with pytest.raises(ValueError, match=r"threads=\[1, -1\]"):
        tfq.benchmark(folder / "small.tflite", threads=[1, -1], progress=False)
    with pytest.raises(OSError, match=r"none\.tflite"):
        tfq.benchmark(folder / "none.tflite", progress=False)
