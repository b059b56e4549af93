"""Mixtures at a byte budget: scores of `tfq.search` beside w8a8, random recipes and greedy.

python benchmarks/automatic.py --data FOLDER [--only ic_resnet8,kws_dscnn] [--seeds 0]
    [--effort default] [--random 50] [--share 0.5] [--markdown FILE]

The budget lies half way (`--share`) between the bytes of w4a8 and of w8a8. Rows that search sees
score nothing: 200 training images of CIFAR-10, 100 clips or photographs of others; the others are
scored by the simulation, which gives the integers of the file. *random*: 50 recipes
of one random order each, in which layers are given 8 bits as long as there is room; the *best* is
the best on the scored rows, which no search could choose, *chosen* the one with the closest outputs
on the rows that search sees. *greedy* gives 8 bits in the order of the noise that they take from a
layer for their bytes. Minutes are of the process, of all cores together. Exit code 1: a bar is
missed: the score of w8a8 less 0.3 points, the best random recipe, or greedy.
"""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cases
import numpy as np
from absl import app, flags, logging

import tfquant as tfq
from tfquant.board import check_choices
from tfquant.search.costs import Costs, file_bytes
from tfquant.search.mixtures import Mixtures
from tfquant.sensitivity import Study

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list("only", ["ic_resnet8", "kws_dscnn"], "Models.")
flags.DEFINE_list("seeds", ["0"], "Seeds of random recipes.")
flags.DEFINE_enum("effort", "default", ["fast", "default", "best"], "Effort.")
flags.DEFINE_integer("random", 50, "Number of random recipes.", lower_bound=1)
flags.DEFINE_float("share", 0.5, "Where the budget lies between w4a8 and w8a8.")
flags.DEFINE_string("markdown", None, "File to write the table to.")

CHOICES = ("w8a8", "w4a8")

# What search may lose of the score of w8a8.
LOSS = 0.003


class Job:
    """Measures one model.

    Args:
        case: The model.
        load: Loader of the data folder.
        seed: Of random recipes.
    """

    def __init__(self, case, load, seed):
        self.name, self.seed, self.model = case.name, seed, case.model(load)
        self.seen, self.rows, self.labels = case.rows(load)
        self.settings = {"effort": FLAGS.effort, "seed": seed, "batch_size": 32}

    def _score(self, q):
        outputs = q.predict(self.rows, batch_size=50, verbose=0)
        return float(np.mean(outputs.argmax(-1) == self.labels))

    def _quantized(self, recipe):
        return tfq.quantize(self.model, self.seen, recipe, progress=False, **self.settings)

    def run(self) -> dict:
        """Returns the row of the table, and prints it."""
        whole = {x: self._quantized(x) for x in CHOICES}
        sizes = {x: file_bytes(q) for x, q in whole.items()}
        low, high = sizes["w4a8"], sizes["w8a8"]
        bound = int(low + FLAGS.share * (high - low))
        row = {
            "model": self.name,
            "seed": self.seed,
            "budget": bound,
            "float": self._score(self.model),
        }
        row |= {x: self._score(q) for x, q in whole.items()}
        began = time.process_time()
        budget = tfq.Budget(bytes=bound)
        found = tfq.search(self.model, self.seen, budget, CHOICES, progress=False, **self.settings)
        row["minutes"] = (time.process_time() - began) / 60
        row |= {"bytes": found.bytes, "search": self._score(found.model), "dB": found.sqnr}
        study = Study(self.model, self.seen, check_choices(CHOICES), **self.settings)
        mixtures = Mixtures(study, Costs(study.board), list(CHOICES))
        row["greedy"] = self._score(self._built(study, mixtures, greedy(mixtures, bound)))
        rng = np.random.default_rng(1000 + self.seed)
        orders = [rng.permutation(len(mixtures.items)) for _ in range(FLAGS.random)]
        drawn = [filled(mixtures, bound, order) for order in orders]
        scores = {x: self._score(self._built(study, mixtures, x)) for x in dict.fromkeys(drawn)}
        row["random"] = [scores[x] for x in drawn]
        row["chosen"] = scores[max(scores, key=lambda x: mixtures.measure(x).sqnr)]
        print(
            f"{self.name} seed {self.seed}, {bound:,} bytes: float {row['float']:.4f}  w8a8 "
            f"{row['w8a8']:.4f}  w4a8 {row['w4a8']:.4f}  search {row['search']:.4f} in "
            f"{row['bytes']:,} bytes  greedy {row['greedy']:.4f}  random best "
            f"{max(row['random']):.4f} chosen {row['chosen']:.4f} mean "
            f"{np.mean(row['random']):.4f}  {row['minutes']:.1f} min",
            flush=True,
        )
        return row

    def _built(self, study, mixtures, mixture):
        return self._quantized(study.board.recipe(mixtures.full(mixture)))


def filled(mixtures, bound, order) -> tuple:
    """Returns the mixture in which layers have 8 bits, in an order, as long as there is room."""
    mixture = list(mixtures.smallest())
    for index in order:
        if "w8a8" not in mixtures.items[index].costs:
            continue
        raised = [*mixture[:index], "w8a8", *mixture[index + 1 :]]
        if mixtures.bytes(raised) <= bound:
            mixture = raised
    return tuple(mixture)


def greedy(mixtures, bound) -> tuple:
    """Returns the mixture of the order of what 8 bits take away of the noise for their bytes."""

    def gain(index):
        item, low = mixtures.items[index], mixtures.smallest()[index]
        more = item.costs["w8a8"][0] - item.costs[low][0]
        return (item.noise[low] - item.noise["w8a8"]) / max(more, 1)

    order = sorted(range(len(mixtures.items)), key=gain, reverse=True)
    return filled(mixtures, bound, order)


def table(rows) -> str:
    """Returns the rows as Markdown."""
    lines = [
        "| model | seed | budget, bytes | float | w8a8 | w4a8 | search | greedy | random: best, "
        "chosen, mean | minutes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for row in rows:
        scores = " | ".join(f"{row[x]:.4f}" for x in ("float", "w8a8", "w4a8", "search", "greedy"))
        best, mean = max(row["random"]), np.mean(row["random"])
        lines.append(
            f"| {row['model']} | {row['seed']} | {row['budget']:,} | {scores} | {best:.4f}, "
            f"{row['chosen']:.4f}, {mean:.4f} | {row['minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(_):
    """Runs the command."""
    logging.set_verbosity(logging.ERROR)
    known = {case.name: case for case in cases.CASES if case.has_data}
    unknown = set(FLAGS.only) - set(known)
    if unknown:
        names = ", ".join(known)
        raise app.UsageError(f"--only must name some of {names}. Received: {sorted(unknown)}")
    load, rows = cases.open_loader(FLAGS.data), []
    for name in FLAGS.only:
        for seed in map(int, FLAGS.seeds):
            rows.append(Job(known[name], load, seed).run())
            if FLAGS.markdown:
                with open(FLAGS.markdown, "w", encoding="utf-8") as file:
                    file.write(table(rows))
    missed = [
        row
        for row in rows
        if row["search"] < row["w8a8"] - LOSS
        or row["search"] < max(row["random"])
        or row["search"] < row["greedy"]
    ]
    for row in missed:
        print(f"a bar is missed: {row['model']}, seed {row['seed']}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    app.run(main)
