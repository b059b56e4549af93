"""Recurrent and attention models, float and quantized, on one table.

    python benchmarks/sequence.py --data FOLDER [--models kws_lstm_s,kws_gru_s,minilm]

`FOLDER` holds a `load.py` with `model`, `kws_rnn`, `kws_rnn25`, `minilm`, `agnews` and
`stsb_spearman`. Scores are those of the quantized model, of its packed weights or of LiteRT, as the
column says, on rows that calibrated nothing; bytes those of the weights packed, or of the file.
"""

import argparse
import os
import sys
import tempfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter

import tfquant as tfq

CALIBRATION_ROWS = 100

SCHEMES = ("w8a8", "w8", "w4", "w4_g32", "w4a8_g32")


def main():
    """Prints one Markdown row for each model and scheme."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with load.py")
    parser.add_argument("--models", default="kws_lstm_s,kws_gru_s,minilm")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="of minilm")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.data)
    import load

    print("| model | scheme | computed by | score | float | same as float | bytes |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name in arguments.models.split(","):
        if name == "minilm":
            _minilm(load, arguments.schemes.split(","))
        else:
            _keywords(load, name)


def _keywords(load, name):
    model = load.model("kws_rnn", f"{name}.keras")
    x, y = load.kws_rnn() if "lstm" in name else load.kws_rnn25()
    x = x.astype(np.float32)
    rows, test, labels = x[:CALIBRATION_ROWS], x[CALIBRATION_ROWS:], y[CALIBRATION_ROWS:]
    expected = model.predict(test, verbose=0).argmax(-1)
    q = tfq.quantize_model(model)
    tfq.calibrate(q, rows, progress=False)
    _row(name, "w8a8", "Keras", q.predict(test, verbose=0), labels, expected, None)
    content = tflite(q)
    _row(name, "w8a8", "LiteRT", run_file(content, [test]), labels, expected, len(content))


def _minilm(load, schemes):
    model = load.minilm(agnews=True)
    (calibration, _), (test, labels) = load.agnews("calib"), load.agnews("test")
    rows = {key: value[:CALIBRATION_ROWS] for key, value in calibration.items()}
    expected = model.predict(test, verbose=0).argmax(-1)
    inputs = [test[key] for key in sorted(test)]
    for scheme in schemes:
        q = tfq.quantize_model(model, scheme)
        if scheme == "w8a8":
            tfq.calibrate(q, rows, progress=False)
        outputs = q.predict(test, verbose=0)
        _row("AG News", scheme, "Keras", outputs, labels, expected, None)
        if "_g" in scheme:
            packed = tfq.to_packed(q)
            size = packed.packing_report.packed_bytes
            outputs = packed.predict(test, verbose=0)
            _row("AG News", scheme, "packed", outputs, labels, expected, size)
        if scheme != "w4_g32":  # LiteRT has no float arithmetic with groups.
            content = tflite(q)
            outputs = run_file(content, inputs)
            _row("AG News", scheme, "LiteRT", outputs, labels, expected, len(content))
    model = load.minilm()
    length = model.inputs[0].shape[1]
    score = load.stsb_spearman(lambda texts: model.predict(texts, verbose=0))
    for scheme in schemes:
        q = tfq.quantize_model(model, scheme)
        if scheme == "w8a8":
            tfq.calibrate(q, {k: v[:, :length] for k, v in rows.items()}, progress=False)
        ours = load.stsb_spearman(lambda texts, q=q: q.predict(texts, verbose=0))
        print(f"| STS-B | {scheme} | Keras | {ours:.4f} | {score:.4f} | - | - |", flush=True)


def _row(name, scheme, where, outputs, labels, expected, size):
    classes = outputs.argmax(-1)
    score, base, same = (
        np.mean(v) for v in (classes == labels, expected == labels, classes == expected)
    )
    size = "-" if size is None else f"{size:,}"
    print(
        f"| {name} | {scheme} | {where} | {score:.3f} | {base:.3f} | {same:.1%} | {size} |",
        flush=True,
    )


def tflite(q):
    """Returns the bytes of the file of a quantized model."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        tfq.to_tflite(q, path, verify=False, progress=False)
        with open(path, "rb") as file:
            return file.read()


def run_file(content, arrays):
    """Returns the real values of the file's one output on all rows."""
    interpreter = Interpreter(model_content=content, num_threads=2)
    interpreter.allocate_tensors()
    inputs, output = interpreter.get_input_details(), interpreter.get_output_details()[0]
    outputs = []
    for i in range(len(arrays[0])):
        for detail, array in zip(inputs, arrays, strict=True):
            value, (scale, zero_point) = array[i : i + 1], detail["quantization"]
            if scale and np.issubdtype(detail["dtype"], np.integer):
                info = np.iinfo(detail["dtype"])
                value = np.clip(np.rint(value / scale) + zero_point, info.min, info.max)
            interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
        interpreter.invoke()
        value, (scale, zero_point) = interpreter.get_tensor(output["index"]), output["quantization"]
        outputs.append((value.astype(np.float32) - zero_point) * scale if scale else value)
    return np.concatenate(outputs)


if __name__ == "__main__":
    main()
