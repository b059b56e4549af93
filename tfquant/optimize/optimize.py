"""`optimize`: integers chosen on data, layer by layer and block by block."""

import logging

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tfquant.data.batches import batches
from tfquant.graph.walk import all_layers
from tfquant.optimize.algorithm import get
from tfquant.optimize.block import Block, cut
from tfquant.optimize.outputs import Outputs
from tfquant.optimize.sites import Site, has_weights, why_not
from tfquant.optimize.streams import Streams
from tfquant.quantizers import Static
from tfquant.rewrite.validate import check_is_model
from tfquant.wrappers import Quantize, QuantizeWrapper

_logger = logging.getLogger("tfquant")

# Fewer rows say too little about any layer.
LEAST_ROWS = 16


def optimize(model, data, algorithm=None, *, seed=0, batch_size=32, steps=None, progress=True):
    """Chooses the integers of the weights of a calibrated model on data, without labels.

    The model is run side by side with the float model behind it. Each layer, or block of layers,
    gets its integers on the inputs that the layers before it compute with theirs, such that it
    puts out what it does in the float model. Files, sizes and parity are those of rounding to the
    nearest. Where the model's outputs come no closer to the float model's on these rows, the
    model is left as it was, and a warning says so. Interrupting it leaves a valid model: what was
    done stays.

    Args:
        model: Model from `quantize_model`, calibrated. Changed in place.
        data: As of `calibrate`; no labels. 512 to 1024 rows serve.
        algorithm: Name of an algorithm (`"gptq"`, `"adaround"`, ...; see
            `tfquant.optimize.ALGORITHMS`), an object with its options, a list of them to go
            through in turn, or `None` for what the model's recipe says of each layer.
        seed: Of what is drawn by chance: the same seed gives the same integers.
        batch_size: Rows to compute at once.
        steps: Number of batches to take; `None` takes all.
        progress: Whether to show a progress bar with the time that is left.

    Returns:
        `model`. Its `optimization` says what came of it.

    Raises:
        TypeError: If `model` is not a Keras model, or `algorithm` nothing of the above.
        ValueError: If the model is not quantized or not calibrated, no layer is to be optimized,
            an algorithm is unknown, or the data are too few or do not fit.

    Example:

    ```python
    q = tfq.calibrate(tfq.quantize_model(model, "w4a8"), images)
    tfq.optimize(q, images, "adaround", seed=0)
    ```
    """
    check_is_model(model)
    wrappers = [layer for layer in all_layers(model) if isinstance(layer, QuantizeWrapper)]
    _check_calibrated(model, wrappers)
    plan = _plan(wrappers, algorithm)
    rows = [arrays for arrays in batches(data, model.inputs, batch_size, steps)]
    count = sum(len(arrays[0]) for arrays in rows)
    if count < LEAST_ROWS:
        raise ValueError(
            f"`data` must have at least {LEAST_ROWS} rows; 512 to 1024 serve. Received: {count}."
        )
    streams = Streams(model, rows)
    plan, left = _that_can(plan, streams.graph)
    _warn_of(left)
    outputs = Outputs(model, wrappers, rows)
    with _bar(progress) as bar:
        _Run(streams, plan, np.random.default_rng(seed), bar).run()
    asked = {algorithm for algorithms in plan.values() for algorithm in algorithms}
    names = sorted({algorithm.name for algorithm in asked})
    model.optimization = outputs.weigh(names, any(algorithm.compresses for algorithm in asked))
    model.predict_function = model.test_function = model.train_function = None
    return model


def _plan(wrappers, algorithm) -> dict:
    """Returns the algorithms of each wrapper, those in front that they begin with included."""
    if algorithm is None:
        chosen = {w: w.algorithm for w in wrappers if w.algorithm is not None}
        if not chosen:
            raise ValueError(
                "`algorithm` must be named where the recipe of the model names none: "
                "tfq.optimize(q, data, 'adaround'), or tfq.Recipe(..., algorithm='adaround')."
            )
    else:
        chosen = dict.fromkeys(wrappers, algorithm)
    plan, made = {}, {}
    for wrapper, what in chosen.items():
        names = what if isinstance(what, list | tuple) else [what]
        if not names:
            raise ValueError("`algorithm` must name at least one algorithm. Received: none.")
        found = [made.setdefault(name, get(name)) for name in names]
        plan[wrapper] = [a for algorithm in found for a in (*algorithm.begins_with, algorithm)]
    return plan


def _that_can(plan, graph):
    """Returns the plan of calls that an algorithm can take, and why others are left."""
    chosen, left = {}, {}
    for node in graph.nodes:
        if node.layer in plan and has_weights(node):
            why = why_not(node.layer, len(graph.calls(node.layer)))
            if why:
                left[node.layer.layer.name] = why
            else:
                chosen[node] = plan[node.layer]
    if not chosen:
        reasons = "; ".join(f"'{name}': {why}" for name, why in left.items()) or "none has weights"
        raise ValueError(f"No layer can be optimized. Received: {reasons}.")
    return chosen, left


def _warn_of(left):
    if left:
        listed = "; ".join(f"'{name}', {why}" for name, why in left.items())
        _logger.warning("These layers keep the nearest integers: %s.", listed)


class _Run:
    """One walk through a model.

    Args:
        streams: `Streams` that have run nothing yet.
        plan: List of algorithms of each call.
        rng: Where chance comes from.
        bar: `Progress`.
    """

    def __init__(self, streams, plan, rng, bar):
        self.streams, self.plan, self.rng, self.bar = streams, plan, rng, bar
        self.total = sum(len(algorithms) for algorithms in plan.values())
        self.task = bar.add_task("Optimizing", total=self.total)
        self.done = 0

    def run(self):
        """Walks."""
        for nodes in cut(self.streams.graph, lambda node: node in self.plan):
            self._block(nodes)

    def _block(self, nodes):
        """Runs the calls of a block, and asks the algorithms."""
        block = Block(nodes, self.streams, [], self.rng)
        self.streams.keep([*block.inputs, *block.outputs])
        for node in nodes:
            self.streams.run_float(node)
            if node in self.plan:
                self._layer(node, block)
            self.streams.run_quantized(node)
            self.streams.read(node)
        whole = [a for site in block.sites for a in self.plan[site.node] if not a.by_layer]
        for algorithm in dict.fromkeys(whole):
            sites = [site for site in block.sites if algorithm in self.plan[site.node]]
            self._ask(algorithm, Block(nodes, self.streams, sites, self.rng))
            for node in nodes:
                self.streams.run_quantized(node)
        self.streams.release()

    def _layer(self, node, block):
        """Asks the algorithms that look at one layer."""
        if not self.streams.finite(node):
            _logger.warning(
                "'%s' keeps the nearest integers: its inputs are NaN or infinite.",
                node.layer.layer.name,
            )
            self._step(len(self.plan[node]))
            return
        node.layer.originals.restore()
        site = Site(node, self.streams)
        block.sites.append(site)
        for algorithm in self.plan[node]:
            if algorithm.by_layer:
                self._ask(algorithm, Block([node], self.streams, [site], self.rng))

    def _ask(self, algorithm, block):
        names = ", ".join(site.name for site in block.sites)
        self.bar.update(self.task, description=f"{algorithm.name}: {names}")
        count = len(block.sites)
        block.tick = lambda share: self.bar.update(self.task, completed=self.done + share * count)
        algorithm.choose(block)
        self._step(count)

    def _step(self, count):
        self.done += count
        self.bar.update(self.task, completed=self.done)


def _bar(progress):
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, TimeRemainingColumn(), transient=True, disable=not progress)


def _check_calibrated(model, wrappers):
    quantizers = [q for w in wrappers for site in w.output_quantizers for q in site]
    points = [x.quantizer for x in all_layers(model) if isinstance(x, Quantize)]
    if not wrappers:
        raise ValueError(
            f"A model from tfq.quantize_model is expected. Received: '{model.name}', which has no "
            "quantized layers."
        )
    for quantizer in (*quantizers, *points):
        if isinstance(quantizer, Static) and not quantizer.calibrated:
            raise ValueError(
                "A calibrated model is expected: call tfq.calibrate(model, data) first. Received: "
                f"'{model.name}', whose activations have no ranges yet."
            )
