"""`optimize`: integers chosen on data, layer by layer and block by block."""

import logging

import numpy as np
from keras import tree
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tfquant.calibrate import calibrate
from tfquant.data.batches import batches, joined
from tfquant.graph.walk import all_layers
from tfquant.optimize.algorithm import get
from tfquant.optimize.block import Block, cut
from tfquant.optimize.outputs import Outputs
from tfquant.optimize.scale import Scaling
from tfquant.optimize.sites import Site, has_weights, why_not
from tfquant.quantizers import Static
from tfquant.rewrite.validate import check_is_model
from tfquant.streams import Streams, ahead_of
from tfquant.wrappers import Quantize, QuantizeWrapper

_logger = logging.getLogger("tfquant")

# Fewer rows say too little about any layer.
LEAST_ROWS = 16

# One batch in eight judges what was chosen on the others.
JUDGED = 8

# How often an algorithm is asked about a layer that reads what it has computed itself.
ROUNDS = 2


def optimize(model, data, algorithm=None, *, seed=0, batch_size=32, steps=None, progress=True):
    """Chooses the integers of the weights of a calibrated model on data, without labels.

    The model is run side by side with the float model behind it. Each layer, or block of layers,
    gets its integers on the inputs that the layers before it compute with theirs, such that it
    puts out what it does in the float model. Files, sizes and parity are those of rounding to the
    nearest. One batch in eight is kept out, where there are as many: where the model's outputs on
    these come no closer to the float model's, the model is left as it was, and a warning says so.
    Interrupting it leaves a valid model: what was done stays.

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
    rows, judging = _kept_out(rows)
    asked = dict.fromkeys(a for algorithms in plan.values() for a in algorithms)
    scalings = [a for a in asked if isinstance(a, Scaling)]
    choosing = {w: [a for a in found if a not in scalings] for w, found in plan.items()}
    streams = None
    if any(choosing.values()):
        streams = Streams(model, rows)
        choosing, left = _that_can(choosing, streams.graph)
        _warn_of(left)
    outputs = Outputs(model, wrappers, judging)
    try:
        for algorithm in scalings:
            _scale(model, algorithm, [w for w in plan if algorithm in plan[w]], rows)
    except BaseException:
        outputs.put_back()
        raise
    if streams is not None:
        with _bar(progress) as bar:
            _Run(streams, choosing, np.random.default_rng(seed), bar).run()
    names = sorted({algorithm.name for algorithm in asked})
    model.optimization = outputs.weigh(names, any(algorithm.compresses for algorithm in asked))
    model.predict_function = model.test_function = model.train_function = None
    return model


def _kept_out(rows):
    """Returns the batches to choose on, and those that judge what was chosen.

    One in `JUDGED` judges. Of fewer batches all do both.
    """
    judging = rows[JUDGED - 1 :: JUDGED]
    if not judging:
        return rows, rows
    return [x for n, x in enumerate(rows) if n % JUDGED != JUDGED - 1], judging


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


def _scale(model, algorithm, wrappers, rows):
    """Scales channels, and finds the grids of activations again where there are any."""
    arrays = joined(rows)
    algorithm.scale(model, wrappers, arrays)
    if any(isinstance(quantizer, Static) for quantizer in _grids(model)):
        calibrate(model, arrays, batch_size=len(rows[0][0]), progress=False)


def _that_can(plan, graph):
    """Returns the plan of layers that an algorithm can take, and why others are left."""
    chosen, left = {}, {}
    for node in graph.nodes:
        if plan.get(node.layer) and has_weights(node):
            why = why_not(node.layer)
            if why:
                left[node.layer.layer.name] = why
            else:
                chosen[node.layer] = plan[node.layer]
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
        plan: List of algorithms of each layer.
        rng: Where chance comes from.
        bar: `Progress`.
    """

    def __init__(self, streams, plan, rng, bar):
        self.streams, self.plan, self.rng, self.bar = streams, plan, rng, bar
        self.total = sum(len(algorithms) for algorithms in plan.values())
        self.task = bar.add_task("Optimizing", total=self.total)
        self.done, self.seen, self.met, self.changing = 0, set(), set(), set()

    def run(self):
        """Walks."""
        for nodes in cut(self.streams.graph, lambda node: node.layer in self.plan):
            self._block(nodes)

    def _block(self, nodes):
        """Runs the calls of a block, and asks the algorithms."""
        block = Block(nodes, self.streams, [], self.rng)
        self.streams.keep([*block.inputs, *block.outputs])
        for node in nodes:
            self._visit(node, block)
        whole = [a for site in block.sites for a in self.plan[site.wrapper] if not a.by_layer]
        for algorithm in dict.fromkeys(whole):
            asked = [site for site in block.sites if algorithm in self.plan[site.wrapper]]
            sites = [site for site in asked if set(site.calls) <= set(nodes)]
            self._step(len(asked) - len(sites))
            self._ask(algorithm, Block(nodes, self.streams, sites, self.rng))
            for node in nodes:
                self.streams.run_quantized(node)
        self.streams.release()

    def _visit(self, node, block):
        """Runs a call; if it is the first of a layer that gets integers, behind choosing them."""
        if node in self.seen:
            return
        layer = node.layer
        first = layer in self.plan and layer not in self.met
        self.met.add(layer)
        if first and len(self.streams.graph.calls(layer)) > 1:
            self._shared(layer, block)
        self.streams.run_float(node)
        if first and len(self.streams.graph.calls(layer)) == 1:
            self._layer([node], block, lambda *_: self.streams, 1)
        self.streams.run_quantized(node)
        self.streams.read(node)
        self.seen.add(node)

    def _shared(self, layer, block):
        """Asks the algorithms about a layer that is called in several places.

        What its calls read is found first: where that depends on none of them, for good; where a
        call reads what others compute, as at the steps of a recurrent layer, with the integers
        that the layer has so far, and once more with those that were chosen on it.
        """
        graph = self.streams.graph
        calls = graph.calls(layer)
        self.changing.add(layer)
        free, bound = ahead_of(graph, layer, self.seen, self.changing)
        for node in free:
            self._visit(node, block)
        layer.originals.restore()
        self.streams.remember(layer)
        keep = {x for node in calls for x in (*node.inputs, *tree.flatten(node.outputs))}
        reads_itself = any(graph.producer(x) in bound for node in calls for x in node.inputs)

        def look(before=None):
            again = before is None or reads_itself
            return self.streams.ahead(bound, keep, before) if again else before

        self._layer(calls, block, look, ROUNDS if reads_itself else 1)
        self.changing.remove(layer)

    def _layer(self, calls, block, look, rounds):
        """Asks the algorithms that look at one layer.

        Args:
            calls: Its calls.
            block: `Block` that they are in.
            look: Function that returns `Streams` that have run what they read, of what it has
                returned the last time, if anything.
            rounds: How often to ask each algorithm.
        """
        wrapper, streams = calls[0].layer, look()
        if not all(streams.finite(node) for node in calls):
            _logger.warning(
                "'%s' keeps the nearest integers: its inputs are NaN or infinite.",
                wrapper.layer.name,
            )
            self._step(len(self.plan[wrapper]))
            return
        wrapper.originals.restore()
        site = Site(calls, streams, settled=rounds == 1)
        asked = [a for a in self.plan[wrapper] if a.by_layer]
        for number, algorithm in enumerate(a for a in asked for _ in range(rounds)):
            site.streams = look(site.streams) if number else streams
            self._ask(algorithm, Block(calls, site.streams, [site], self.rng), 1 / rounds)
        site.streams = self.streams
        block.sites.append(site)

    def _ask(self, algorithm, block, part=1.0):
        """Asks an algorithm about a block, which is this part of what there is to be asked."""
        names = ", ".join(site.name for site in block.sites)
        self.bar.update(self.task, description=f"{algorithm.name}: {names}")
        count = len(block.sites) * part
        block.tick = lambda share: self.bar.update(self.task, completed=self.done + share * count)
        algorithm.choose(block)
        self._step(count)

    def _step(self, count):
        self.done += count
        self.bar.update(self.task, completed=self.done)


def _bar(progress):
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, TimeRemainingColumn(), transient=True, disable=not progress)


def _grids(model) -> list:
    """Returns the quantizers of activations, `None` among them."""
    found = all_layers(model)
    wrappers = [layer for layer in found if isinstance(layer, QuantizeWrapper)]
    points = [layer.quantizer for layer in found if isinstance(layer, Quantize)]
    return [*points, *(q for w in wrappers for site in w.output_quantizers for q in site)]


def _check_calibrated(model, wrappers):
    if not wrappers:
        raise ValueError(
            f"A model from tfq.quantize_model is expected. Received: '{model.name}', which has no "
            "quantized layers."
        )
    for quantizer in _grids(model):
        if isinstance(quantizer, Static) and not quantizer.calibrated:
            raise ValueError(
                "A calibrated model is expected: call tfq.calibrate(model, data) first. Received: "
                f"'{model.name}', whose activations have no ranges yet."
            )
