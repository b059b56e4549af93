"""How far the simulation of each device is from the device, on real networks.

    python benchmarks/devices.py --data FOLDER [--models ic_resnet8,...] [--schemes w8a8,w4a8]
        [--devices litert,litert_arm] [--arm ROOT]

`FOLDER` holds a `load.py` with `model`, `cifar10`, `kws` and `kws_rnn`; networks that have no data
get random rows. `ROOT` is a folder made by `tools/arm64.py setup`: without it `litert_arm` is left
out on other processors. Op by op each operator is fed the device's own inputs, on 4 rows; end to
end are whole runs.
"""

import argparse
import logging
import os
import pathlib
import sys
import tempfile

import keras
import numpy as np

import tfquant as tfq
from tfquant import devices

CALIBRATION_ROWS = 64
ROWS = 32
MODELS = "ic_resnet8,kws_dscnn,vww_mobilenet,ad_autoencoder,kws_lstm_s,attention"


def main():
    """Prints one Markdown row for each network, scheme and device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with load.py")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--schemes", default="w8a8,w4a8,w8a16")
    parser.add_argument("--devices", default=",".join(devices.DEVICES))
    parser.add_argument("--arm", default="", help="folder made by tools/arm64.py setup")
    arguments = parser.parse_args()
    root = pathlib.Path(__file__).parent.parent
    sys.path[:0] = [arguments.data, str(root / "tools")]
    import arm64
    import load

    logging.disable(logging.WARNING)
    emulator = None
    if arguments.arm:
        emulator = arm64.Emulator(arguments.arm, os.environ.get("CPU", "cortex-a76"))
    print("| network | scheme | device | apart op by op | apart end to end | operators apart |")
    print("| --- | --- | --- | ---: | ---: | --- |")
    for name in arguments.models.split(","):
        model, rows = _network(load, name)
        for scheme in arguments.schemes.split(","):
            for device in arguments.devices.split(","):
                runs_here = devices.get(device).runs_here()
                if runs_here or emulator is not None:
                    run = None if runs_here else emulator.run
                    print(_row(name, model, rows, scheme, device, run), flush=True)


def _row(name, model, rows, scheme, device, run):
    q = tfq.quantize_model(model, scheme, device=device)
    tfq.calibrate(q, rows[:CALIBRATION_ROWS], progress=False)
    with tempfile.TemporaryDirectory() as folder:
        report = tfq.to_tflite(
            q, pathlib.Path(folder, "f.tflite"), samples=rows[-ROWS:], run=run, progress=False
        )
    apart = {}
    for layer in report.layers:
        if layer.parity is not None and layer.parity.differing:
            apart[layer.operator] = apart.get(layer.operator, 0) + layer.parity.differing
    named = ", ".join(f"{key} {value}" for key, value in apart.items())
    inner, whole = report.op_by_op, report.end_to_end
    return (
        f"| {name} | {scheme} | {device} | {inner.differing:,} of {inner.values:,} | "
        f"{whole.differing:,} of {whole.values:,} (largest {whole.largest:g}) | {named} |"
    )


def _network(load, name):
    """Returns a network and rows of inputs for it."""
    if name == "attention":
        keras.utils.set_random_seed(0)
        x = keras.Input((12, 16))
        y = keras.layers.MultiHeadAttention(4, 8)(x, x)
        y = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Add()([x, y])))
        model = keras.Model(x, keras.layers.Softmax()(y))
        return model, _random(model)
    if name.startswith("kws_") and name != "kws_dscnn":
        frames = load.kws_rnn() if "lstm" in name else load.kws_rnn25()
        return load.model("kws_rnn", f"{name}.keras"), frames[0].astype(np.float32)
    model = load.model("mlperf_tiny", f"{name}.keras")
    if name == "ic_resnet8":
        return model, load.cifar10("train")[0][:200].astype(np.float32)
    return model, load.kws()[0] if name == "kws_dscnn" else _random(model)


def _random(model):
    shape = (200, *model.input_shape[1:])
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


if __name__ == "__main__":
    main()
