"""Source for microcontrollers: what a compiler makes of it, and what the interpreter takes."""

import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from small import chain

import tfquant as tfq
from tfquant.c.export import _method
from tfquant.litert import micro

pytest.importorskip("tflite_micro", reason="needs the extra tfquant[tflm]: tflite-micro")

# What a header of TensorFlow Lite Micro's says, as far as the source asks for it.
STUB = """
#pragma once
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
#define TF_LITE_ENSURE_STATUS(x) do { if ((x) != kTfLiteOk) return kTfLiteError; } while (0)
namespace tflite {
template <unsigned int count> struct MicroMutableOpResolver {
  unsigned int added = 0;
  TfLiteStatus Add() { return added++ < count ? kTfLiteOk : kTfLiteError; }
  TfLiteStatus AddConv2D() { return Add(); }
  TfLiteStatus AddFullyConnected() { return Add(); }
  TfLiteStatus AddMaxPool2D() { return Add(); }
  TfLiteStatus AddReshape() { return Add(); }
  TfLiteStatus AddSoftmax() { return Add(); }
};
}
"""

MAIN = """
#include <cstdint>
#include <cstdio>
#include "digits_2_model_data.h"
#include "digits_2_model_settings.h"
int main() {
  Digits2OpResolver resolver;
  if (RegisterDigits2Ops(resolver) != kTfLiteOk || resolver.Add() == kTfLiteOk) return 1;
  if (reinterpret_cast<std::uintptr_t>(g_digits_2_model_data) % 16) return 2;
  std::fwrite(g_digits_2_model_data, 1, g_digits_2_model_data_size, stdout);
}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    keras.utils.set_random_seed(0)
    parts = layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(2), layers.Flatten()
    model = chain((8, 8, 1), *parts, layers.Dense(3, activation="softmax"))
    rows = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")
    q = tfq.calibrate(tfq.quantize_model(model, device="tflm"), rows, progress=False)
    path = tmp_path_factory.mktemp("file") / "Digits-2.tflite"
    tfq.to_tflite(q, path, verify=False, progress=False)
    return path


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_compiler_makes_the_bytes_of_the_file_and_a_resolver_of_its_operators(file, tmp_path):
    report = tfq.export_c(file, tmp_path / "out")
    stub = tmp_path / "tensorflow/lite/micro/micro_mutable_op_resolver.h"
    stub.parent.mkdir(parents=True)
    stub.write_text(STUB)
    (tmp_path / "main.cc").write_text(MAIN)
    sources = [str(tmp_path / "main.cc"), str(tmp_path / "out" / report.files[0])]
    flags = ["-std=c++17", "-Wall", "-Werror", f"-I{tmp_path}", f"-I{tmp_path / 'out'}"]
    subprocess.run(["g++", *flags, *sources, "-o", str(tmp_path / "main")], check=True)
    done = subprocess.run([str(tmp_path / "main")], capture_output=True, check=True)
    assert done.stdout == file.read_bytes()


def test_the_arena_is_the_smallest_that_runs_and_a_margin(file, tmp_path):
    script = pathlib.Path(micro.__file__).with_name("measure_arena.py")
    report = tfq.export_c(file, tmp_path / "out")

    def runs(size):  # In a process of its own, which too small an arena may end.
        command = [sys.executable, "-I", str(script), str(size)]
        done = subprocess.run(command, input=file.read_bytes(), capture_output=True, check=False)
        return done.returncode == 0

    assert runs(report.measured_bytes) and not runs(report.measured_bytes - 16)
    assert report.arena_bytes == report.measured_bytes + report.margin_bytes
    assert report.arena_bytes % 16 == 0 and report.margin_bytes >= 1024
    assert f"ArenaSize = {report.arena_bytes};" in (tmp_path / "out" / report.files[2]).read_text()


@pytest.mark.parametrize(
    ("operator", "method"),
    [
        ("AVERAGE_POOL_2D", "AddAveragePool2D"),
        ("BATCH_MATMUL", "AddBatchMatMul"),
        ("CUMSUM", "AddCumSum"),
        ("L2_NORMALIZATION", "AddL2Normalization"),
        ("PADV2", "AddPadV2"),
        ("RELU6", "AddRelu6"),
        ("SPACE_TO_BATCH_ND", "AddSpaceToBatchNd"),
        ("SPLIT_V", "AddSplitV"),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", "AddUnidirectionalSequenceLSTM"),
    ],
)
def test_methods_have_the_resolvers_names(operator, method):
    assert _method(operator) == method


def test_what_microcontrollers_do_not_run_is_refused_and_nothing_written(tmp_path):
    model = chain((6,), layers.Dense(4), layers.Activation("gelu"))
    rows = np.ones((4, 6), "float32")
    q = tfq.calibrate(tfq.quantize_model(model), rows, progress=False)
    tfq.to_tflite(q, tmp_path / "gelu.tflite", progress=False)
    with pytest.raises(ValueError, match=r"gelu.tflite'.*Didn't find op for builtin opcode 'GELU'"):
        tfq.export_c(tmp_path / "gelu.tflite", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_that_c_does_not_take_is_refused(file, tmp_path):
    with pytest.raises(ValueError, match=r"`name` must be letters.* Received: '2 x'"):
        tfq.export_c(file, tmp_path / "out", name="2 x")


def test_a_folder_that_is_there_is_left_alone(file, tmp_path):
    with pytest.raises(FileExistsError, match="A new folder is expected"):
        tfq.export_c(file, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_the_interpreter_the_extra_is_named(file, tmp_path, monkeypatch):
    monkeypatch.setattr("tfquant.litert.micro.is_there", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'tfquant\[tflm\]'"):
        tfq.export_c(file, tmp_path / "out")
    assert not list(tmp_path.iterdir())
