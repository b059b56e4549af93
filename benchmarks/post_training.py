"""Integers chosen on data, without labels: scores of files in LiteRT, and minutes.

python benchmarks/post_training.py --data FOLDER [--only ic_resnet8] [--scheme w4a8,w3a8]
    [--algorithm gptq] [--seeds 0,1,2]

Rows are optimized on that score nothing: 1024 training images of CIFAR-10, 300 of 600 clips, 300 of
500 photographs; all others are scored. `nearest` is what calibration alone leaves. *apart* counts
values that differ between Keras and the device, recomputed op by op; *bytes* are those
of rounding to the nearest, or the exit code is 1, as it is where a value is apart.
"""

import os
import resource
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import check_file
import numpy as np
from absl import app, flags, logging
from cases import CASES, open_loader
from device import Runner

import tfquant as tfq

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list("only", ["ic_resnet8", "kws_dscnn"], "Models.")
flags.DEFINE_list("scheme", ["w4a8", "w3a8", "w2a8"], "Schemes; the edges of w2a8 have 8 bits.")
flags.DEFINE_list("algorithm", ["gptq"], "Algorithms.")
flags.DEFINE_list("seeds", ["0"], "Seeds.")

CIFAR_ROWS, OTHER_ROWS = 1024, 300

# Rows that calibrate, of those above; rows of which each operator is recomputed.
CALIBRATION_ROWS, CHECKED_ROWS = 256, 20


def rows_of(case, load):
    """Returns rows to optimize on, rows to score and their labels."""
    if case.name == "ic_resnet8":
        images, labels = load.cifar10("test")
        chosen = load.cifar10("train")[0][:CIFAR_ROWS]
        return chosen.astype("float32"), images.astype("float32"), labels
    if case.name == "kws_dscnn":
        x, labels = load.kws()
    else:
        images, labels = load.imagenet500()
        x = load.IMAGENET_PREPROCESS[case.name](images)
    order = np.random.default_rng(0).permutation(len(x))
    chosen, others = order[:OTHER_ROWS], order[OTHER_ROWS:]
    return x[chosen], x[others], labels[others]


def scheme_of(name) -> tfq.Scheme:
    """Returns a scheme of the table, or one of its form."""
    if name in tfq.SCHEMES:
        return tfq.SCHEMES[name]
    weights, activations = name[1:].split("a")
    return tfq.Scheme(name, int(weights), int(activations))


class Job:
    """Measures one model.

    Args:
        case: The model.
        load: Loader of the data folder.
    """

    def __init__(self, case, load):
        self.case, self.model = case, case.model(load)
        self.chosen, self.rows, self.labels = rows_of(case, load)
        truth = self.model.predict(self.rows, batch_size=25, verbose=0)
        self.expected = truth.argmax(-1)
        print(
            f"{case.name}: float {np.mean(self.expected == self.labels):.4f} of {len(self.rows)} "
            f"rows, optimized on {len(self.chosen)} others",
            flush=True,
        )

    def run(self) -> bool:
        """Prints the figures; returns whether files are as they must be."""
        right = True
        for scheme in FLAGS.scheme:
            size = self._measure(scheme, None, 0)[0]
            for algorithm in FLAGS.algorithm:
                for seed in FLAGS.seeds:
                    found, apart = self._measure(scheme, algorithm, int(seed))
                    right = right and found == size and not apart
        return right

    def _measure(self, scheme, algorithm, seed):
        """Returns bytes of the file and values that are apart."""
        q = tfq.quantize_model(self.model, scheme_of(scheme))
        tfq.calibrate(q, self.chosen[:CALIBRATION_ROWS], batch_size=25, progress=False)
        start = time.perf_counter()
        if algorithm is not None:
            tfq.optimize(q, self.chosen, algorithm, seed=seed, batch_size=25, progress=False)
        minutes = (time.perf_counter() - start) / 60
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.tflite")
            report = tfq.to_tflite(q, path, progress=False)
            with open(path, "rb") as file:
                content = file.read()
        check = check_file.check(content, self.rows[:CHECKED_ROWS])
        found = Runner(content)(self.rows)[0].argmax(-1)
        apart = check.total.differing + report.end_to_end.differing
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"  {scheme} {algorithm or 'nearest':<9} seed {seed}  score "
            f"{np.mean(found == self.labels):.4f}  same as float "
            f"{np.mean(found == self.expected):.4f}  {minutes:5.1f} min  {len(content):,} bytes  "
            f"{apart} apart op by op and end to end  peak {peak:.1f} GiB",
            flush=True,
        )
        return len(content), apart


def main(_):
    """Runs the command."""
    logging.set_verbosity(logging.ERROR)
    unknown = set(FLAGS.only) - {case.name for case in CASES if case.has_data}
    if unknown:
        names = ", ".join(case.name for case in CASES if case.has_data)
        raise app.UsageError(f"--only must name some of {names}. Received: {sorted(unknown)}")
    load = open_loader(FLAGS.data)
    right = [Job(case, load).run() for case in CASES if case.name in FLAGS.only]
    return 0 if all(right) else 1


if __name__ == "__main__":
    app.run(main)
