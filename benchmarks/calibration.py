"""What calibration does to real models: corrections of biases at w4a8.

python benchmarks/calibration.py --data FOLDER [--only ic_resnet8,kws_dscnn] [--scheme w4a8]

Scores are those of the Keras simulation, on all rows that calibrated nothing. The exit code is 1 if
a model scores worse with the correction that calibration chose than without any.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from cases import CASES, open_loader

import tfquant as tfq

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list(
    "only", ["ic_resnet8", "kws_dscnn", "mobilenet_v1_025_224", "effnet_lite0"], "Models."
)
flags.DEFINE_string("scheme", "w4a8", "Scheme.")

METHODS = (False, "mean", "mean_deviation", "auto")

# Of the share of right predictions: one point of a few hundred rows is noise.
NOISE = 0.01


def corrections(case, load) -> bool:
    """Prints the scores of each method; returns whether the chosen one is no worse than none."""
    calibration, rows, labels = case.rows(load)
    model = case.model(load)
    truth = model.predict(rows, batch_size=16, verbose=0).argmax(-1)
    print(f"{case.name} {FLAGS.scheme}: float {np.mean(truth == labels):.4f} of {len(rows)} rows")
    q, scores = tfq.quantize_model(model, FLAGS.scheme), {}
    for method in METHODS:
        start = time.perf_counter()
        tfq.calibrate(q, calibration, bias_correction=method, batch_size=16, progress=False)
        seconds = time.perf_counter() - start
        found = q.predict(rows, batch_size=16, verbose=0).argmax(-1)
        scores[method] = np.mean(found == labels)
        print(
            f"  {method or 'none':<15} score {scores[method]:.4f}  same as float "
            f"{np.mean(found == truth):.4f}  {seconds:.0f} s  {q.correction}",
            flush=True,
        )
    return scores["auto"] >= scores[False] - NOISE


def main(_):
    load = open_loader(FLAGS.data)
    right = [corrections(case, load) for case in CASES if case.name in FLAGS.only]
    return 0 if all(right) else 1


if __name__ == "__main__":
    app.run(main)
