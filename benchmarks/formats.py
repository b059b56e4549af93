"""Models through the doors that lead out: bytes, score, agreement, integers apart.

    python benchmarks/formats.py --data FOLDER [--only ic_resnet8,MobileNetV2] [--schemes w8a8,w4a8]

A model is one of `cases.py`, `minilm_l3`, or a network of `keras.applications` with random weights.
Each scheme is written twice: as `.tflite` from a model that simulates LiteRT, as ONNX from one that
simulates ONNX Runtime. What each column means is in benchmarks/README.md. The exit code is 1 if a
bar is missed.
"""

import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import networks
import numpy as np
from absl import app, flags
from cases import CASES, open_loader

import tfquant as tfq

APPLICATIONS = ("MobileNetV2", "ResNet50", "EfficientNetB0", "DenseNet121")
MINILM = "minilm_l3"

# Operators that multiply by weights, and that would be QLinearConv, QGemm or QLinearMatMul.
FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list("only", [], "Names of models; all without.")
flags.DEFINE_list("schemes", ["w8a8"], "Names of schemes.")
flags.DEFINE_integer("rows", 256, "Rows to compare at most.")


def opened(name, load):
    """Returns a model, rows to calibrate it on, rows to compare and labels or `None`."""
    case = next((case for case in CASES if case.name == name), None)
    if case is not None:
        calibration, rows, labels = case.rows(load)
        return case.model(load), calibration, rows, labels if case.has_data else None
    if name == MINILM:
        model = load.minilm(agnews=True)
        (calibration, _), (rows, labels) = load.agnews("calib"), load.agnews("test")
        return model, calibration, rows, labels
    model = networks.network(name)
    return model, networks.images(model, 10, 0), networks.images(model, 32, 1), None


def head(rows, count):
    """Returns the first rows of an array, or of each of several."""
    if isinstance(rows, dict):
        return {name: x[:count] for name, x in rows.items()}
    if isinstance(rows, (list, tuple)):
        return [x[:count] for x in rows]
    return rows[:count]


def measured(name, scheme, load, folder):
    """Prints what becomes of a model under a scheme; returns the bars that it misses."""
    model, calibration, rows, labels = opened(name, load)
    rows = head(rows, FLAGS.rows)
    expected = model.predict(rows, verbose=0, batch_size=32).argmax(-1)
    sizes, missed = {}, []
    for kind, device, write in (
        ("tflite", None, tfq.to_tflite),
        ("onnx", "onnxruntime", tfq.to_onnx),
    ):
        q = tfq.quantize_model(model, scheme, device=device)
        if tfq.SCHEMES[scheme].static:
            tfq.calibrate(q, calibration, progress=False)
        path = os.path.join(folder, f"{name}.{kind}")
        report = write(q, path, samples=rows, progress=False)
        sizes[kind], found, end = report.quantized_bytes, report.op_by_op, report.end_to_end
        predicted = q.predict(rows, verbose=0, batch_size=32).argmax(-1)
        cells = [name, scheme, kind, f"{report.quantized_bytes:,}"]
        score = "-" if labels is None else f"{np.mean(predicted == labels[: len(predicted)]):.4f}"
        cells += [score, f"{np.mean(predicted == expected):.4f}"]
        cells += [
            f"{found.differing:,} of {found.values:,}",
            f"{end.differing:,} of {end.values:,}",
        ]
        cells.append("-" if end.equal_predictions is None else f"{end.equal_predictions:.2%}")
        if kind == "onnx":
            counts = ", ".join(f"{n} {o}" for o, n in report.integer_operators.items())
            floats = [x.operator for x in report.float_operators if x.operator in FLOAT_KERNELS]
            cells += [counts or "none", str(len(floats))]
            missed += _bars(scheme, report, floats, sizes)
        print("| " + " | ".join(cells) + " |", flush=True)
    return [f"{name} {scheme}: {bar}" for bar in missed]


def _bars(scheme, report, floats, sizes):
    """Yields the bars that an ONNX file misses."""
    if sizes["onnx"] > 1.05 * sizes["tflite"]:
        yield f"{sizes['onnx'] / sizes['tflite']:.3f} of the .tflite"
    if scheme != "w8a8":
        return
    if floats:
        yield f"{len(floats)} kernels in float"
    if report.op_by_op.differing > 1e-4 * report.op_by_op.values:
        yield "op by op apart"
    if report.end_to_end.equal_predictions not in (None, 1.0):
        yield "predictions apart"


def main(argv):
    del argv
    load = open_loader(FLAGS.data) if FLAGS.data else None
    names = [case.name for case in CASES] + [MINILM] if load else []
    print("model | scheme | format | bytes | score | as float | op by op | end to end | equal |")
    missed = []
    for name in FLAGS.only or [*names, *APPLICATIONS]:
        for scheme in FLAGS.schemes:
            with tempfile.TemporaryDirectory() as folder:
                missed += measured(name, scheme, load, folder)
    print(*(f"MISSED {bar}" for bar in missed), sep="\n")
    sys.exit(bool(missed))


if __name__ == "__main__":
    app.run(main)
