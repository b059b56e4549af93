"""Setting activation grids from data."""

import contextlib
import logging
import math

import numpy as np
from keras import ops
from rich.progress import Progress

from tfquant.calibrate.balance import balance
from tfquant.calibrate.cancelled import cancelling
from tfquant.calibrate.choose import METHODS, check_method, correct_biases, methods_of
from tfquant.calibrate.judge import Judge
from tfquant.calibrate.norms import choose_norms
from tfquant.calibrate.ranges import choose_ranges
from tfquant.calibrate.real import RealCalls
from tfquant.calibrate.rows import split
from tfquant.calibrate.seen import Seen
from tfquant.data.batches import batches, joined
from tfquant.data.memory import give_back
from tfquant.graph.runner import Runner
from tfquant.graph.walk import all_layers
from tfquant.quantizers import RecordingScope, Watch
from tfquant.rewrite.validate import check_is_model
from tfquant.wrappers import CallHook, Quantize, QuantizeWrapper
from tfquant.wrappers.norms import in_float, leave_in_float

_logger = logging.getLogger("tfquant")

# Rows kept at the model's inputs, so that a converted file can be compared on real data.
SAMPLE_ROWS = 256
SAMPLE_BYTES = 64 * 2**20

# Values computed at once: a batch of a large model is seen in parts, for its memory.
VALUES_AT_ONCE = 4e8


def calibrate(
    model,
    data,
    *,
    batch_size=32,
    steps=None,
    observer="auto",
    bias_correction=True,
    progress=True,
):
    """Runs `data` through `model` and sets the grid of every activation.

    Weights are quantized and activations are not while observers watch. Interrupting it leaves the
    model as it was. Data that say little (one row, the same rows, inputs that never change, fewer
    batches than `steps`) are warned of.

    Args:
        model: Model from `quantize_model` or `quantize_apply`. Changed in place.
        data: Array, list of arrays or dict of arrays (several inputs), generator of batches, or
            `tf.data.Dataset`. A hundred rows are usually enough.
        batch_size: Rows in a batch, where `data` is not batched already.
        steps: Number of batches to take; `None` takes all.
        observer: `"min_max"`, `"moving_average"`, `"percentile"`, `"mean_squared_error"` or
            `"entropy"`, an `Observer` class, or a function that returns an observer. `"auto"` is
            `"percentile"`, which kept the most predictions on the models of `benchmarks/`, but
            where the model's outputs are closer to the float model's with rare values kept.
        bias_correction: What to do about quantization moving and shrinking the channels of layers.
            `"mean"` moves each channel's bias by what moved its mean, `"mean_deviation"` scales it
            to the deviation that it had, too; `False` does nothing. `True` or `"auto"` does what
            brings the model's outputs closest to the float model's, on calibration rows that are
            kept out of the correction. `model.correction` says what was done.
        progress: Whether to show a progress bar.

    Returns:
        `model`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not quantized, or the data are empty, of the wrong shape or
            dtype, or not finite.
    """
    check_is_model(model)
    if not any(isinstance(layer, (QuantizeWrapper, Quantize)) for layer in all_layers(model)):
        raise ValueError(
            f"A model from tfq.quantize_model is expected. Received: '{model.name}', which has no "
            "quantized layers."
        )
    wanted, watch = check_method(bias_correction), Watch(observer)
    wrappers = [layer for layer in all_layers(model) if isinstance(layer, QuantizeWrapper)]
    with _undone_by_errors(model, wrappers) as changed:
        for wrapper in wrappers:
            wrapper.originals.restore()
        leave_in_float(model, ())
        runner, calls = Runner(model), RealCalls()
        size = model.inputs[0].shape[0]
        source = batches(data, model.inputs, batch_size, steps)
        with CallHook(cancelling(calls)):
            seen = Seen(model.inputs)
            samples, values_per_row = _see(runner, source, watch, changed, size, seen, progress)
        watch.set_params()
        choices, methods = watch.choices(), methods_of(wanted, wrappers)
        rows = split(samples, size, values_per_row, wanted not in METHODS)
        judge = Judge(model, rows, calls, "mean_deviation" in methods)
        plain = choose_ranges(choices, judge, values_per_row)
        norms = choose_norms(model, judge)
        plain = None if norms is not None and norms.floating else plain
        give_back()
        correction = correct_biases(model, wrappers, runner, judge, methods, wanted, plain)
    model.calibration_samples, model.correction, model.norms = samples, correction, norms
    model.calibration = seen.record(observer)
    _forget_traces(model)
    if doubts := seen.doubts(steps):
        _logger.warning(
            "Ranges may be wrong for real inputs, since calibration saw little: %s.",
            "; ".join(doubts),
        )
    return model


def _see(runner, source, watch, changed, size, seen, progress):
    """Shows the model's activations to `watch`, those of the first rows to `balance` before.

    Args:
        runner: `Runner` of the model.
        source: Batches.
        watch: `Watch`.
        changed: List that is given what `balance` changed.
        size: Number of rows that the model takes, `None` for any.
        seen: `Seen`, which notes every batch.
        progress: Whether to show a progress bar.

    Returns:
        `(rows, values_per_row)`: the first rows of the data, and how much is computed for one.
    """
    rows, sizes = [], []

    def see(quantizer, x):
        sizes.append(math.prod(x.shape[1:]))
        watch.see(quantizer, x)

    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("Calibrating", total=source.total)
        for arrays in source:
            seen.note(arrays)
            for number, part in enumerate(_parts(arrays, runner.values_per_row, size)):
                if not rows and not number:
                    changed += balance(runner, part)
                sizes.clear()
                with RecordingScope(see=see):
                    runner(part)
            _keep(rows, arrays)
            bar.advance(task)
    return joined(rows), sum(sizes)


def _parts(arrays, values_per_row, size):
    """Yields a batch in parts, in one where `size` says that the model takes no other number."""
    count = len(arrays[0])
    rows = max(1, int(VALUES_AT_ONCE / max(values_per_row, 1))) if size is None else count
    for start in range(0, count, rows):
        yield [array[start : start + rows] for array in arrays]


@contextlib.contextmanager
def _undone_by_errors(model, wrappers):
    """Puts corrections and grids back to what they were when something is raised inside.

    Yields a list, which may be given pairs of a variable and the value to put back.
    """
    floating = in_float(model)
    undo = [wrapper.originals.snapshot() for wrapper in wrappers]
    grids = [(v, ops.convert_to_numpy(v)) for q in _quantizers(model) for v in q.variables]
    changed = []
    try:
        yield changed
    except BaseException:
        for variable, value in reversed(changed):
            variable.assign(value)
        for variable, value in grids:
            variable.assign(value)
        for put_back in undo:
            put_back()
        leave_in_float(model, floating)
        raise


def _quantizers(model):
    for layer in all_layers(model):
        if isinstance(layer, Quantize):
            yield layer.quantizer
        elif isinstance(layer, QuantizeWrapper):
            yield from (q for site in layer.output_quantizers for q in site if q is not None)


def _keep(rows, arrays):
    """Appends the first rows of a batch while there is room."""
    have = sum(len(batch[0]) for batch in rows)
    size = sum(array[:1].nbytes for array in arrays)
    room = min(SAMPLE_ROWS, max(1, SAMPLE_BYTES // max(size, 1))) - have
    if room > 0:
        rows.append([np.array(array[:room]) for array in arrays])


def _forget_traces(model):
    """Makes Keras trace `predict` and its like again: the grids are known now."""
    model.predict_function = model.test_function = model.train_function = None
