"""Integers chosen on data, without labels: scores of files in LiteRT, and minutes.

python benchmarks/post_training.py --data FOLDER [--only ic_resnet8] [--scheme w4a8,w3a8]
    [--how fast,default,best] [--seeds 0,1,2]

*How* is an effort of `tfq.quantize`, the name of an algorithm of `tfq.optimize` behind the default
effort, several of them (`equalize+gptq`), or `rival:NAME`, an algorithm of ai-edge-quantizer. Rows
are optimized on that score nothing: 1024 training images of CIFAR-10, 300 of 600 clips, 300 of 500
photographs; all others are scored. Where there are no data, 512 and 200 rows are random ones of
the model's kind, and the outputs' ratio in dB is what counts. *apart* counts values that differ
between Keras and the device, recomputed op by op and end to end; the exit code is 1 if one does, or
if a file has other bytes than that of rounding to the nearest, but for the 64 by which buffers are
aligned.
"""

import os
import resource
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cases
import check_file
import numpy as np
from absl import app, flags, logging
from device import Runner, ai_edge_int8, unrolled

import tfquant as tfq
from tfquant.optimize import EFFORTS

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list("only", ["ic_resnet8", "kws_dscnn"], "Models.")
flags.DEFINE_list("scheme", ["w4a8", "w3a8", "w2a8"], "Schemes; the edges of w2a8 have 8 bits.")
flags.DEFINE_list("how", list(EFFORTS), "Efforts, algorithms, rival:NAME.")
flags.DEFINE_list("seeds", ["0"], "Seeds.")

CIFAR_ROWS, OTHER_ROWS, RANDOM_ROWS = 1024, 300, 512

# Rows that calibrate a rival, and rows of which each operator is recomputed.
RIVAL_ROWS, CHECKED_ROWS = 256, 20

ALIGNMENT = 64


def rows_of(case, load):
    """Returns rows to optimize on, rows to score and their labels, `None` without data."""
    if not case.has_data:
        return case.rows(load, RANDOM_ROWS)
    if case.name == "ic_resnet8":
        _, rows, labels = case.rows(load)
        chosen = load.cifar10("train")[0][:CIFAR_ROWS]
        return chosen.astype("float32"), rows, labels
    x, labels = _all(case, load)
    order = np.random.default_rng(0).permutation(len(x))
    chosen, others = order[:OTHER_ROWS], order[OTHER_ROWS:]
    return x[chosen], x[others], labels[others]


def _all(case, load):
    if case.folder == "imagenet":
        images, labels = load.imagenet500()
        return load.IMAGENET_PREPROCESS[case.name](images), labels
    loaders = {"kws_dscnn": load.kws, "kws_lstm_s": load.kws_rnn, "kws_gru_s": load.kws_rnn25}
    x, labels = loaders[case.name]()
    return x.astype("float32"), labels


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
        self.expected = self.model.predict(self.rows, batch_size=25, verbose=0)
        score = "" if self.labels is None else f"float {self._score(self.expected):.4f} of "
        print(
            f"{case.name}: {score}{len(self.rows)} rows, optimized on {len(self.chosen)} others",
            flush=True,
        )

    def _score(self, outputs):
        return np.mean(outputs.argmax(-1) == self.labels)

    def run(self) -> bool:
        """Prints the figures; returns whether files are as they must be."""
        right = True
        for scheme in FLAGS.scheme:
            sizes = []
            for how in FLAGS.how:
                for seed in FLAGS.seeds if how not in ("fast", "default") else FLAGS.seeds[:1]:
                    if how.startswith("rival:"):
                        self._rival(scheme, how)
                        break
                    size, apart = self._measure(scheme, how, int(seed))
                    sizes.append(size)
                    right = right and not apart
            right = right and max(sizes, default=0) - min(sizes, default=0) <= ALIGNMENT
        return right

    def _measure(self, scheme, how, seed):
        """Returns bytes of the file and values that are apart."""
        effort = how if how in EFFORTS else "default"
        settings = {"effort": effort, "seed": seed, "batch_size": 25, "progress": False}
        start = time.perf_counter()
        q = tfq.quantize(self.model, self.chosen, scheme_of(scheme), **settings)
        if how not in EFFORTS:
            tfq.optimize(q, self.chosen, how.split("+"), seed=seed, batch_size=25, progress=False)
        minutes = (time.perf_counter() - start) / 60
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.tflite")
            report = tfq.to_tflite(q, path, progress=False)
            with open(path, "rb") as file:
                content = file.read()
        apart = report.end_to_end.differing
        if self.case.has_data and self.case.folder != "kws_rnn":
            apart += check_file.check(content, self.rows[:CHECKED_ROWS]).total.differing
        self._print(scheme, f"{how} seed {seed}", content, minutes, f"  {apart} apart")
        return len(content), apart

    def _rival(self, scheme, how):
        start = time.perf_counter()
        bits, algorithm = int(scheme[1:].split("a")[0]), how.partition(":")[2]
        try:
            calibration = self.chosen[:RIVAL_ROWS]
            content = ai_edge_int8(unrolled(self.model), calibration, bits, algorithm)
            self._print(scheme, how, content, (time.perf_counter() - start) / 60, "")
        except Exception as error:  # Its own have no public base.
            why = " ".join(str(error).split())[:80]
            print(f"  {scheme} {how:<22} fails: {type(error).__name__} {why}", flush=True)

    def _print(self, scheme, how, content, minutes, more):
        runner = Runner(content)
        (found,) = runner(self.rows)
        scale, zero_point = runner.outputs[0]["quantization"]
        real = (found.astype(np.float32) - zero_point) * scale if scale else found
        noise = np.mean((real - self.expected) ** 2) / np.var(self.expected, axis=0).mean()
        same = np.mean(real.argmax(-1) == self.expected.argmax(-1))
        score = "" if self.labels is None else f"score {self._score(real):.4f}  same {same:.4f}  "
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"  {scheme} {how:<22} {score}{-10 * np.log10(noise):5.1f} dB  {minutes:5.1f} min  "
            f"{len(content):,} bytes{more}  peak {peak:.1f} GiB",
            flush=True,
        )


def main(_):
    """Runs the command."""
    logging.set_verbosity(logging.ERROR)
    known = {case.name: case for case in (*cases.CASES, *cases.RECURRENT)}
    unknown = set(FLAGS.only) - set(known)
    if unknown:
        names = ", ".join(known)
        raise app.UsageError(f"--only must name some of {names}. Received: {sorted(unknown)}")
    load = cases.open_loader(FLAGS.data)
    right = [Job(known[name], load).run() for name in FLAGS.only]
    return 0 if all(right) else 1


if __name__ == "__main__":
    app.run(main)
