"""How often w8a8 files agree with the float model: ours, stock's and ai-edge-quantizer's.

python benchmarks/agreement.py --data FOLDER [--only ic_resnet8,kws_gru_s]

All three are calibrated on the same rows, at even strides, and run by LiteRT on all others. Models
without data are compared on random inputs. The exit code is 1 if ours agrees less often than one.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cases
import numpy as np
from absl import app, flags
from device import ai_edge_int8, stock_int8, unrolled
from sequence import run_file, tflite

import tfquant as tfq

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list("only", [], "Names of models; all without.")


def ours(model, calibration) -> bytes:
    """Returns our file."""
    q = tfq.quantize_model(model, "w8a8")
    tfq.calibrate(q, calibration, progress=False)
    print(f"  biases: {q.correction}")
    return tflite(q)


def compare(case, load) -> bool:
    """Prints how far each file is from the float model; returns whether ours is no further."""
    calibration, rows, _ = case.rows(load)
    model = case.model(load)
    expected = model.predict(rows, batch_size=32, verbose=0)
    print(f"{case.name}, {len(rows)} rows{'' if case.has_data else ' at random'}", flush=True)
    agree = {}
    for name, make in (("ours", ours), ("stock", stock_int8), ("ai-edge-quantizer", ai_edge_int8)):
        try:
            made = make(model if name == "ours" else unrolled(model), calibration)
            outputs = run_file(made, [rows])
        except Exception as error:  # The converter's own have no public base.
            if name == "ours":
                raise
            print(f"  {name:<18} fails: {str(error).splitlines()[0][:80]}", flush=True)
            continue
        agree[name] = np.mean(outputs.argmax(-1) == expected.argmax(-1))
        noise = np.mean((outputs - expected) ** 2) / np.var(expected, axis=0).mean()
        print(
            f"  {name:<18} same as float {agree[name]:.4f}  outputs {-10 * np.log10(noise):.1f} dB"
        )
    return agree["ours"] >= max(agree.values())


def main(_):
    load = cases.open_loader(FLAGS.data)
    chosen = [
        case
        for case in (*cases.CASES, *cases.RECURRENT)
        if case.name in FLAGS.only or not FLAGS.only
    ]
    return 0 if all([compare(case, load) for case in chosen]) else 1


if __name__ == "__main__":
    app.run(main)
