"""How far the simulation of each device is from the device, on real networks.

    python benchmarks/devices.py --data FOLDER [--models ic_resnet8,...] [--schemes w8a8,w4a8]
        [--devices litert,litert_arm] [--arm ROOT [--cpus cortex-a53 cortex-a76 max,sme=off]]

`FOLDER` holds a `load.py` with `model`, `cifar10`, `kws` and `kws_rnn`; of networks that have no
data there the rows are random, and those of `keras.applications` (any of its names), of 96 pixels a
side, have random weights and batch norms that stand where training leaves them; they need no
`FOLDER`. `ROOT` is a folder made by `tools/arm64.py setup`: without it `litert_arm` is left out on
other processors. Op by op each operator is fed the device's own inputs, on 4 rows; end to end are
whole runs of 32.

One file is made for a network, a scheme and a device. On each further processor it is run on the
same rows; where a single value of any operator is another than on the first one, the model is
compared with that processor as well.
"""

import argparse
import logging
import pathlib
import sys
import tempfile

import keras
import networks
import numpy as np

import tfquant as tfq
from tfquant import devices

CALIBRATION_ROWS = 64
ROWS = 32
SIDE = 96
MODELS = (
    "ic_resnet8,kws_dscnn,vww_mobilenet,ad_autoencoder,kws_lstm_s,kws_gru_s,attention,"
    "MobileNetV2,MobileNetV3Small,EfficientNetB0"
)
CPUS = ("cortex-a53", "cortex-a76", "max,sme=off")
HEADER = (
    "| network | scheme | device | processor | op by op: apart of values | largest | end to end: "
    "apart of values | largest | operators apart | float | not compared |\n"
    "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- | --- | --- |"
)


def main():
    """Prints one Markdown row for each network, scheme, device and processor."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="", help="folder with load.py")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--schemes", default="w8a8,w4a8,w8a16")
    parser.add_argument("--devices", default=",".join(devices.DEVICES))
    parser.add_argument("--arm", default="", help="folder made by tools/arm64.py setup")
    parser.add_argument("--cpus", nargs="+", default=CPUS, help="as the emulator calls them")
    arguments = parser.parse_args()
    sys.path[:0] = [arguments.data, str(pathlib.Path(__file__).parent.parent / "tools")]
    import arm64

    logging.disable(logging.WARNING)
    phones = {}
    if arguments.arm:
        phones = {cpu: arm64.Emulator(arguments.arm, cpu).run for cpu in arguments.cpus}
    print(HEADER)
    for name in arguments.models.split(","):
        model, rows = _network(name)
        for scheme in arguments.schemes.split(","):
            for device in arguments.devices.split(","):
                runs_here = devices.get(device).runs_here()
                q = tfq.quantize_model(model, scheme, device=device)
                tfq.calibrate(q, rows[:CALIBRATION_ROWS], progress=False)
                for cpu, report in _reports(q, rows, {"here": None} if runs_here else phones):
                    print(_row(name, scheme, device, cpu, report), flush=True)


def _reports(q, rows, processors):
    """Yields the name of each processor and the report of the comparison with it.

    Args:
        q: Calibrated model.
        rows: Its inputs.
        processors: Dict from the name of a processor to the function that runs a file there.
    """
    runs = []

    def first(content, arrays):
        runs.append((content, arrays, run(content, arrays)))
        return runs[-1][-1]

    for cpu, run in processors.items():
        if run is None:
            report = _convert(q, rows, None)
        elif not runs:
            report = of_first = _convert(q, rows, first)
        else:
            same = all(
                np.array_equal(a, b)
                for content, arrays, outputs in runs
                for a, b in zip(outputs, run(content, arrays), strict=True)
            )
            report = of_first if same else _convert(q, rows, run)
        yield cpu, report


def _convert(q, rows, run):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "f.tflite")
        return tfq.to_tflite(q, path, samples=rows[-ROWS:], run=run, strict=False, progress=False)


def _row(name, scheme, device, cpu, report):
    apart = {}
    for layer in report.layers:
        if layer.parity is not None and layer.parity.differing:
            key = f"{layer.operator} ({layer.arithmetic})"
            apart[key] = apart.get(key, 0) + layer.parity.differing
    named = ", ".join(f"{key} {value}" for key, value in apart.items())
    unknown = {x.operator for x in report.layers if x.parity is None and x.operator != "-"}
    inner, whole = report.op_by_op, report.end_to_end
    return (
        f"| {name} | {scheme} | {device} | {cpu} | {inner.differing:,} of {inner.values:,} | "
        f"{inner.largest:g} | {whole.differing:,} of {whole.values:,} | {whole.largest:g} | "
        f"{named} | {len(report.float_operators)} | {', '.join(sorted(unknown))} |"
    )


def _network(name):
    """Returns a network and rows of inputs for it."""
    if name in networks.names():
        model = networks.network(name, side=SIDE)
        return model, networks.images(model, CALIBRATION_ROWS + ROWS, seed=1)
    if name == "attention":
        keras.utils.set_random_seed(0)
        x = keras.Input((12, 16))
        y = keras.layers.MultiHeadAttention(4, 8)(x, x)
        y = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Add()([x, y])))
        model = keras.Model(x, keras.layers.Softmax()(y))
        return model, _random(model)
    import load

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
