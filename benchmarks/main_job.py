"""The table of the main job: scores, parity, sizes, latency and time on real models.

python benchmarks/main_job.py --data FOLDER [--only ic_resnet8,kws_dscnn] [--markdown FILE]
python benchmarks/main_job.py --data FOLDER --observers

What each column means is in benchmarks/README.md. The exit code is 1 if a bar is missed.
"""

import dataclasses
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import check_file
import clock
import numpy as np
import observers
from absl import app, flags, logging
from cases import CASES, open_loader
from device import Runner, read, stock_int8
from rich.console import Console
from rich.progress import Progress

import tfquant as tfq

PARTS = ("score", "w4a8", "latency", "time")
FOUR_BIT = ("ic_resnet8", "effnet_lite0")
TIMED = "effnet_lite0"
TIME_ROUNDS = 3
THREADS = (1, 2)

FLAGS = flags.FLAGS
flags.DEFINE_string("data", os.environ.get("TFQUANT_DATA"), "Folder of load.py and the models.")
flags.DEFINE_list("only", [], "Names of models; all without.")
flags.DEFINE_multi_enum("parts", list(PARTS), PARTS, "What to measure; scores always are.")
flags.DEFINE_bool("observers", False, "Compare the observers, and nothing else.")
flags.DEFINE_string("observer", None, "Observer to calibrate with; tfquant's default without.")
flags.DEFINE_string("markdown", None, "File to write the table to.")


@dataclasses.dataclass(frozen=True)
class Bar:
    """One requirement.

    Attributes:
        what: Model and requirement.
        value: What was measured, in words.
        met: Whether it is met.
    """

    what: str
    value: str
    met: bool

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'} {self.what}: {self.value}"


@dataclasses.dataclass
class Figures:
    """What was measured of one model.

    Attributes:
        name: The model.
        rows: Rows of the score.
        float_score, score, stock_score: Shares of right predictions; `None` without data.
        agree, stock_agree: Shares of predictions equal to the float model's, or `None`.
        keras_score: Score of `q.predict`.
        keras: `tfq.Parity` of `q.predict` and the device on the same rows.
        report: tfquant's own report.
        check: Independent check of the file.
        bytes, stock_bytes, reference_bytes: Sizes of the files.
        latency: `clock.Ratios` by number of threads.
        times: `clock.Ratios` by tool.
        four_bit: Figures of the same model with 4-bit weights.
    """

    name: str
    rows: int
    float_score: float | None
    score: float | None
    agree: float | None
    keras_score: float | None
    keras: object
    report: tfq.ConversionReport
    check: check_file.FileCheck
    bytes: int
    stock_score: float | None = None
    stock_agree: float | None = None
    stock_bytes: int = 0
    reference_bytes: int | None = None
    latency: dict = dataclasses.field(default_factory=dict)
    times: dict = dataclasses.field(default_factory=dict)
    four_bit: "Figures | None" = None


class Job:
    """Measures one model.

    Args:
        case: The model.
        load: Loader of the data folder.
        step: Called with a description before each piece of work.
    """

    def __init__(self, case, load, step):
        self.case, self.step = case, lambda words: step(f"{case.name}: {words}")
        self.step("reading")
        self.calibration, self.rows, self.labels = case.rows(load)
        self.model = case.model(load)
        self.step("float model")
        self.expected = self.model.predict(self.rows, batch_size=32, verbose=0)
        self.reference_bytes = case.reference_bytes(load)

    def run(self, parts) -> Figures:
        """Returns the figures."""
        figures, content, scores = self.quantized("w8a8")
        self.step("stock file")
        stock = stock_int8(self.model, self.calibration)
        stock_scores = Runner(stock)(self.rows)[0]
        figures.stock_score = self._score(stock_scores)
        figures.stock_agree = self._agree(stock_scores)
        figures.stock_bytes, figures.reference_bytes = len(stock), self.reference_bytes
        if "w4a8" in parts and self.case.name in FOUR_BIT:
            figures.four_bit = self.quantized("w4a8")[0]
        if "latency" in parts:
            for threads in THREADS:
                self.step(f"latency, {threads} threads")
                answers = scores, stock_scores
                found = clock.latency(content, stock, self.rows, answers, threads)
                figures.latency[threads] = found
        if "time" in parts and self.case.name == TIMED:
            ours = scores.argmax(-1)
            expected = {"verified": ours, "unverified": ours, "stock": stock_scores.argmax(-1)}
            figures.times = clock.conversions(
                FLAGS.data, self.case, expected, TIME_ROUNDS, lambda words: self.step(words)
            )
        return figures

    def quantized(self, scheme):
        """Quantizes the model and measures the file.

        Returns:
            `(figures, bytes of the file, its outputs)`.
        """
        self.step(f"{scheme}: quantize, calibrate, convert, verify")
        q = tfq.quantize_model(self.model, scheme)
        chosen = {"observer": FLAGS.observer} if FLAGS.observer else {}
        tfq.calibrate(q, self.calibration, progress=False, **chosen)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, f"{self.case.name}_{scheme}.tflite")
            report = tfq.to_tflite(q, path, progress=False)
            with open(path, "rb") as file:
                content = file.read()
        self.step(f"{scheme}: recomputing the file")
        check = check_file.check(content, self.rows)
        self.step(f"{scheme}: device on {len(self.rows)} rows")
        scores = Runner(content)(self.rows)[0]
        self.step(f"{scheme}: q.predict on {len(self.rows)} rows")
        predicted = q.predict(self.rows, batch_size=32, verbose=0)
        figures = Figures(
            name=self.case.name,
            rows=len(self.rows),
            float_score=self._score(self.expected),
            score=self._score(scores),
            agree=self._agree(scores),
            keras_score=self._score(predicted),
            keras=_parity(content, predicted, scores),
            report=report,
            check=check,
            bytes=len(content),
        )
        return figures, content, scores

    def _score(self, scores):
        return None if self.labels is None else float(np.mean(scores.argmax(-1) == self.labels))

    def _agree(self, scores):
        if self.labels is None:
            return None
        return float(np.mean(scores.argmax(-1) == self.expected.argmax(-1)))


def _parity(content, predicted, scores) -> tfq.report.Parity:
    """Compares `q.predict`, rounded to the grid of the file's output, with the device."""
    model = read(content)
    quantization = model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]].quantization
    steps = np.rint(predicted / np.float32(quantization.scale[0])) + quantization.zeroPoint[0]
    apart = np.abs(np.clip(steps, -128, 127) - scores)
    equal = float(np.mean(predicted.argmax(-1) == scores.argmax(-1)))
    differing = int((apart > 0).sum())
    return tfq.report.Parity(apart.size, differing, float(apart.max()), len(scores), equal)


def bars(f: Figures) -> list[Bar]:
    """Returns the requirements of one model."""
    found = []
    add = lambda what, value, met: found.append(Bar(f"{f.name} {what}", value, bool(met)))  # noqa: E731
    if f.float_score is not None:
        points = 100 * (f.score - f.float_score)
        add("w8a8 within 0.5 points of float", f"{points:+.2f}", points >= -0.5 - 1e-9)
        value = f"{f.score:.4f} and {f.stock_score:.4f}"
        add("w8a8 not below stock", value, f.score >= f.stock_score)
    for scheme, g in (("w8a8", f), ("w4a8", f.four_bit)):
        if g is not None:
            _parity_bars(scheme, g, add)
    if f.reference_bytes is not None:
        value = f"{f.bytes:,} and {f.reference_bytes:,}, {f.bytes / f.reference_bytes:.3f}"
        add("size not above MLPerf's", value, f.bytes <= f.reference_bytes)
    else:
        value = f"{f.bytes:,} and {f.stock_bytes:,}, {f.bytes / f.stock_bytes:.3f}"
        add("size not above stock's + 1%", value, f.bytes <= 1.01 * f.stock_bytes)
    if f.four_bit is not None:
        share, g = f.four_bit.bytes / f.bytes, f.four_bit.check
        if f.name == TIMED:
            add("w4a8 file at most 0.60 of w8a8's", f"{share:.3f}", share <= 0.60)
        value = f"{len(g.int4)} INT4 tensors, {g.detours} DEQUANTIZE or float tensors inside"
        add("w4a8 is 4 bits without a float detour", value, g.int4 and not g.detours)
    for threads, ratios in f.latency.items():
        add(f"latency within 3% of stock, {threads} threads", str(ratios), ratios.median <= 1.03)
    for tool, limit in (("verified", 1.25), ("unverified", 1.0)):
        if tool in f.times:
            met = f.times[tool].median <= limit
            add(f"time {tool} at most {limit:.2f} of stock", str(f.times[tool]), met)
    return found


def _parity_bars(scheme, f, add):
    inner = [layer for layer in f.report.layers if layer.parity and layer.parity.in_steps]
    for kind, limit in (("exact", 1e-4), ("table or fixed point", 1.0)):
        exact = kind == "exact"
        chosen = [layer.parity for layer in inner if (layer.arithmetic == "exact") == exact]
        if not chosen:
            continue
        total = sum(chosen[1:], chosen[0])
        value = f"{total.differing:,} of {total.values:,}, largest {total.largest:g}"
        met = total.largest <= 1 and total.share_differing <= limit
        add(f"{scheme} op by op, {kind}", value, met)
    total = f.check.total
    value = f"{total.differing:,} of {total.values:,}, largest {total.largest}"
    value += f", {total.operators} operators, {f.check.unchecked} unchecked"
    add(f"{scheme} recomputed independently", value, f.check.met)
    for name, parity in (("verification rows", f.report.end_to_end), ("scored rows", f.keras)):
        value = f"{1 - parity.share_differing:.4%} equal values, largest {parity.largest:g}"
        met = parity.share_differing <= 1e-3
        if parity.equal_predictions is not None:
            value += f", {parity.equal_predictions:.2%} equal predictions"
            met = met and parity.equal_predictions >= 0.995
        add(f"{scheme} end to end, {name}", f"{value}, {parity.rows} rows", met)
    if f.score is not None:
        value = f"{f.keras_score:.4f} and {f.score:.4f}"
        add(f"{scheme} q.predict scores what the device does", value, f.keras_score == f.score)
    saturated = max(f.report.saturated_biases, f.check.saturated)
    add(f"{scheme} no bias saturates", str(saturated), not saturated)


def table(figures) -> list[str]:
    """Returns the tables in Markdown."""
    number = lambda x: "-" if x is None else f"{x:.4f}"  # noqa: E731
    share = lambda x: "-" if x is None else f"{x:.2%}"  # noqa: E731
    steps = lambda p: f"{p.differing:,} of {p.values:,}"  # noqa: E731
    lines = _rows(
        "model | float | stock | w8a8 | points | same as float: stock | w8a8 | apart op by op"
        " | apart end to end | bytes: MLPerf | stock | w8a8",
        [
            (
                f.name,
                number(f.float_score),
                number(f.stock_score),
                number(f.score),
                "-" if f.score is None else f"{100 * (f.score - f.float_score):+.2f}",
                share(f.stock_agree),
                share(f.agree),
                steps(f.check.total),
                steps(f.keras),
                "-" if f.reference_bytes is None else f"{f.reference_bytes:,}",
                f"{f.stock_bytes:,}",
                f"{f.bytes:,}",
            )
            for f in figures
        ],
    )
    four = [f for f in figures if f.four_bit]
    if four:
        lines += _rows(
            "model | float | w4a8 | same as float | apart op by op | apart end to end"
            " | bytes | share of w8a8 | INT4 tensors | float detours",
            [
                (
                    f.name,
                    number(f.float_score),
                    number(f.four_bit.score),
                    share(f.four_bit.agree),
                    steps(f.four_bit.check.total),
                    steps(f.four_bit.keras),
                    f"{f.four_bit.bytes:,}",
                    f"{f.four_bit.bytes / f.bytes:.3f}",
                    str(len(f.four_bit.check.int4)),
                    str(f.four_bit.check.detours),
                )
                for f in four
            ],
        )
    ratios = [(f.name, f"latency, {n} threads", r) for f in figures for n, r in f.latency.items()]
    ratios += [(f.name, f"time, {tool}", r) for f in figures for tool, r in f.times.items()]
    if ratios:
        lines += _rows(
            "model | ours by stock | median ratio | lowest | highest",
            [
                (name, what, f"{r.median:.3f}", f"{r.low:.3f}", f"{r.high:.3f}")
                for name, what, r in ratios
            ],
        )
    return lines


def _rows(header, rows):
    columns = header.split(" | ")
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)] + [""]


def _observers(load, chosen, console):
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        step = lambda words: progress.update(task, description=words)  # noqa: E731
        found = observers.measure(load, [c.name for c in chosen], observers.SCHEMES, step)
    for r in found:
        console.print(
            f"{r.model:<22} {r.scheme} {r.observer:<20} float {r.float_score:.4f}  score "
            f"{r.score:.4f}  same {r.agree:.4f}  logit error {r.logit_error:.4f}"
        )
    console.print("\n".join(observers.summary(found)))


def main(argv):
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"No arguments are expected. Received: {argv[1:]}")
    if not FLAGS.data or not os.path.isfile(os.path.join(FLAGS.data, "load.py")):
        raise app.UsageError(
            "--data or TFQUANT_DATA must name the folder that holds load.py and the models. "
            f"Received: {FLAGS.data!r}"
        )
    unknown = set(FLAGS.only) - {case.name for case in CASES}
    if unknown:
        names = ", ".join(case.name for case in CASES)
        raise app.UsageError(f"--only must name some of {names}. Received: {sorted(unknown)}")
    logging.set_verbosity(logging.ERROR)
    chosen = [case for case in CASES if not FLAGS.only or case.name in FLAGS.only]
    load, console = open_loader(FLAGS.data), Console(soft_wrap=True, highlight=False)
    if FLAGS.observers:
        _observers(load, chosen, console)
        return 0
    figures, required = [], []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        step = lambda words: progress.update(task, description=words)  # noqa: E731
        for case in chosen:
            figures.append(Job(case, load, step).run(FLAGS.parts))
            progress.advance(task)
            required += bars(figures[-1])
            console.print("\n".join(map(str, bars(figures[-1]))), markup=False)
            if FLAGS.markdown:
                with open(FLAGS.markdown, "w") as file:
                    file.write("\n".join(table(figures)))
    for f in figures:
        if f.four_bit:
            console.print(f"{f.name}, INT4: {', '.join(f.four_bit.check.int4)}", markup=False)
    console.print("\n".join(table(figures)), markup=False)
    missed = [bar for bar in required if not bar.met]
    console.print(f"{len(required) - len(missed)} of {len(required)} bars met")
    console.print("\n".join(map(str, missed)), markup=False)
    return 1 if missed else 0


if __name__ == "__main__":
    app.run(main)
