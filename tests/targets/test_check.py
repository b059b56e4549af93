"""What a target takes of a file, against the target's own tool where it is installed."""

import importlib.util
import subprocess

import keras
import numpy as np
import pytest
from keras import layers
from small import trained

import tfquant as tfq
from tfquant.litert import micro, rules
from tfquant.litert.flatbuffer import File
from tfquant.targets import TARGETS, ethos_u
from tfquant.targets.target import KEEP_INTEGERS, REAL_TYPES

needs_micro = pytest.mark.skipif(not micro.is_there(), reason="tflite-micro is not installed")
needs_vela = pytest.mark.skipif(
    not importlib.util.find_spec("ethosu"), reason="ethos-u-vela is not installed"
)


def network(*ends):
    first = [keras.Input((12, 12, 3)), layers.Conv2D(8, 3, activation="relu")]
    rest = [layers.DepthwiseConv2D(3), *ends, layers.Flatten(), layers.Dense(4)]
    return keras.Sequential([*first, *rest], name="net")


def written(path, scheme="w8a8", *ends, **settings):
    model = network(*ends)
    x = np.random.default_rng(0).normal(size=(16, 12, 12, 3)).astype("float32")
    q = tfq.quantize_model(model, scheme)
    if scheme not in ("w8a8_dynamic", "f16"):
        tfq.calibrate(q, x, progress=False)
    tfq.to_tflite(q, path, progress=False, samples=x, **settings)
    return path


def refused(report):
    return [x.operator for x in report.refused]


@pytest.mark.parametrize("device", TARGETS)
def test_a_file_of_8_bits_fits_everywhere(tmp_path, device):
    settings = {"input_type": "int8", "output_type": "int8", "batch_size": 1}
    report = tfq.check(written(tmp_path / "m.tflite", **settings), device)
    assert report.fits, report
    assert {x.runs for x in report.operators} == {"integers"}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16", "w8a8_dynamic", "f16"])
def test_only_what_takes_float_takes_float(tmp_path, scheme):
    path = written(tmp_path / "m.tflite", scheme)
    edge, litert = tfq.check(path, "edgetpu"), tfq.check(path, "xnnpack")
    assert litert.target == "litert" and not litert.refused
    has_float = any(x.runs == "float" for x in litert.operators)
    assert has_float == (scheme in ("w8a8_dynamic", "f16"))
    multiplies = [x for x in edge.operators if x.operator in rules.KERNELS]
    taken = {"w8a8": 0, "w4a8": 1}.get(scheme, 3)  # INT4 depthwise kernels there are none.
    if scheme != "w4a8":
        assert sum(x.runs == "not taken" for x in multiplies) == taken
    else:
        assert {x.operator for x in multiplies if x.runs == "integers"} == {"DEPTHWISE_CONV_2D"}
    assert all(x.why and x.remedy for x in edge.refused)


def test_a_free_batch_is_named_where_sizes_must_be_known(tmp_path):
    free = written(tmp_path / "free.tflite", batch_size=None)
    assert -1 in tfq.inspect(free).inputs[0][2]
    report = tfq.check(free, "edgetpu")
    assert not report.fits and "--file_batch 1" in str(report) and tfq.check(free, "tflm").fits
    fixed = tfq.check(written(tmp_path / "fixed.tflite", batch_size=1), "edgetpu")
    assert fixed.fits and not fixed.notes


def test_a_cast_in_the_middle_is_not_blamed_on_the_ends(tmp_path):
    path = written(tmp_path / "m.tflite", "w8a16", layers.Activation("log_softmax"))
    casts = [x for x in tfq.check(path, "edgetpu").operators if x.operator.endswith("QUANTIZE")]
    assert casts and all(x.runs == "not taken" and x.remedy != KEEP_INTEGERS for x in casts)
    path = written(tmp_path / "ends.tflite", input_type="float32")
    first, *_ = tfq.check(path, "edgetpu").operators
    assert (first.operator, first.remedy) == ("QUANTIZE", KEEP_INTEGERS)


@needs_micro
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a8_dynamic"])
def test_what_micro_refuses_is_named_as_its_interpreter_does(tmp_path, scheme):
    path = written(tmp_path / "m.tflite", scheme, layers.Activation("gelu"))
    report = tfq.check(path, "tflm")
    assert not report.fits and "GELU" in refused(report)
    assert micro.error(path.read_bytes()) is not None
    runs = tfq.check(written(tmp_path / "n.tflite"), "tflm")
    assert runs.fits and "bytes" in runs.figures["arena"]


@needs_micro
def test_the_table_of_micro_refuses_what_its_interpreter_refuses(tmp_path):
    ends = [[], [layers.Activation("gelu")], [layers.Activation("log_softmax")]]
    ends += [[layers.Activation("tanh")], [layers.LeakyReLU()]]
    for number, end in enumerate(ends):
        for scheme in ("w8a8", "w4a8", "w8a16", "w8a8_dynamic"):
            path = written(tmp_path / f"{number}{scheme}.tflite", scheme, *end, verify=False)
            content = path.read_bytes()
            file = File(content)
            by_table = [op.name for op in file.ops if TARGETS["tflm"].why_not(file, op)]
            assert bool(by_table) == (micro.error(content) is not None), (scheme, end, by_table)


@needs_vela
@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_the_table_of_the_npu_refuses_what_its_compiler_refuses(tmp_path, scheme):
    ends = [layers.Activation("log_softmax"), layers.Conv2D(4, 3, activation="gelu")]
    settings = {"input_type": "int8"} if scheme == "w8a8" else {}
    path = written(tmp_path / "m.tflite", scheme, *ends, **settings)
    report, target = tfq.check(path, "ethos-u"), TARGETS["ethos-u"]
    file = File(path.read_bytes())
    by_table = [op.name for op in file.ops if target.why_not(file, op)]
    assert refused(report) == by_table and "LOG_SOFTMAX" in by_table
    assert report.proved_by.startswith("Vela") and "KiB" in report.figures["flash"]


@needs_vela
def test_all_of_a_convolutional_network_of_8_bits_runs_on_the_npu(tmp_path):
    ends = [layers.BatchNormalization(), layers.ReLU(6.0), layers.AveragePooling2D(2)]
    report = tfq.check(written(tmp_path / "m.tflite", "w8a8", *ends, input_type="int8"), "ethos-u")
    assert {x.operator for x in report.operators} >= {"CONV_2D", "DEPTHWISE_CONV_2D"}
    assert {x.runs for x in report.operators if x.operator not in ("QUANTIZE", "DEQUANTIZE")} == {
        "integers"
    }


@needs_vela
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ad_autoencoder", "ic_resnet8", "kws_dscnn", "vww_mobilenet"])
def test_all_of_a_trained_network_runs_on_the_npu(name, tmp_path):
    model, rows = trained(f"mlperf_tiny/{name}")
    q = tfq.calibrate(tfq.quantize_model(model), rows.astype("float32"), progress=False)
    settings = {"input_type": "int8", "output_type": "int8"}
    tfq.to_tflite(q, tmp_path / "m.tflite", progress=False, **settings)
    report = tfq.check(tmp_path / "m.tflite", "ethos-u")
    print(name, report.figures)
    assert report.fits and {x.runs for x in report.operators} == {"integers"}, report


def test_without_its_tool_the_table_speaks_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = tfq.check(written(tmp_path / "m.tflite", "w4a8"), "ethos-u")
    assert not report.proved_by and report.install == "ethos-u-vela"
    assert "pip install ethos-u-vela" in str(report)
    assert set(refused(report)) >= {"CONV_2D", "FULLY_CONNECTED"}


def test_what_vela_does_not_compile_is_no_praise_for_the_rest(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Error: Invalid tflite file.")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    monkeypatch.setattr(ethos_u.Target, "tool_is_there", lambda target: True)
    path = written(tmp_path / "m.tflite", "w8a8_dynamic")
    report = tfq.check(path, "ethos-u")
    assert "FULLY_CONNECTED" in refused(report) and len(report.refused) > 1


def test_an_onnx_file_is_judged_by_the_graph_that_runs(tmp_path):
    pytest.importorskip("onnxruntime")
    model = network()
    x = np.random.default_rng(0).normal(size=(16, 12, 12, 3)).astype("float32")
    for scheme in ("w8a8", "w8"):
        q = tfq.quantize_model(model, scheme, device="onnxruntime")
        if scheme == "w8a8":
            tfq.calibrate(q, x, progress=False)
        tfq.to_onnx(q, tmp_path / "m.onnx", samples=x, progress=False)
        report = tfq.check(tmp_path / "m.onnx", "onnxruntime")
        floats = [y.operator for y in report.operators if y.runs == "float"]
        assert bool({"Conv", "FusedConv", "Gemm"} & set(floats)) == (scheme == "w8")
        assert report.fits


def test_mistakes_are_told(tmp_path):
    path = written(tmp_path / "m.tflite")
    with pytest.raises(ValueError, match=r"Received: 'ethosu'\. Did you mean 'ethos-u'"):
        tfq.check(path, "ethosu")
    (tmp_path / "none.tflite").write_bytes(b"no file of that kind")
    for device in (*TARGETS, "onnxruntime"):
        with pytest.raises(ValueError, match=r"none\.tflite"):
            tfq.check(tmp_path / "none.tflite", device)
    with pytest.raises(OSError, match="missing"):
        tfq.check(tmp_path / "missing.tflite")


def test_tables_name_operators_and_types_of_the_schema():
    from tfquant.litert import flatbuffer

    known = set(flatbuffer._OP_NAMES.values())
    for target in TARGETS.values():
        assert (target.operators or set()) <= known and set(target.remedies) <= known
        assert not set(target.remedies) & (target.operators or set()), "nobody reads these"
        assert set(target.activations) <= set(REAL_TYPES)
        assert set(REAL_TYPES) <= set(flatbuffer.TYPE_NAMES.values())
        assert target.source and target.elsewhere
