"""Inputs and labels to train and to judge by, in every form that `fit` takes."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

# Share of the rows of arrays that is held out where nothing is said, and the rows that it takes at
# least to tell one epoch from another; of fewer than twice as many, half are held out.
HELD_OUT = 1 / 8
LEAST_HELD_OUT = 100

# How far sums of probabilities are from 1, at 8 bits and many classes.
SUM_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What a model is trained and judged by.

    Attributes:
        training: Arguments of `fit` that say what is trained on.
        validation: Arguments of `evaluate` that say what is judged by.
        steps: Batches in an epoch.
        first: First batch to train on: inputs and labels.
        held_out: Number of rows that were held out to judge by.
    """

    training: dict
    validation: dict
    steps: int
    first: tuple
    held_out: int = 0

    def judging(self) -> dict:
        """Returns the arguments of `fit` that say what is judged by."""
        given = dict(self.validation)
        size, steps, x = given.pop("batch_size", None), given.pop("steps", None), given.pop("x")
        rows = (x, *given.values()) if given else x
        return {"validation_data": rows, "validation_batch_size": size, "validation_steps": steps}


def lessons(
    model,
    data: Any,
    validation: Any,
    batch_size: int,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
) -> Lessons:
    """Reads what `finetune` is given.

    Args:
        model: The model that is trained.
        data: As of `finetune`.
        validation: Likewise.
        batch_size: Rows in a batch of arrays.
        steps_per_epoch: Batches in an epoch, where the data do not say it.
        validation_steps: Batches to judge by, likewise.

    Raises:
        ValueError: If something is missing, has another form, or does not fit the model.
    """
    for name, number in (
        ("batch_size", batch_size),
        ("steps_per_epoch", steps_per_epoch),
        ("validation_steps", validation_steps),
    ):
        if number is not None and not (isinstance(number, int | np.integer) and number > 0):
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={number!r}.")
    share, held_out = validation, 0
    if share is None:
        share = HELD_OUT
        if isinstance(data, tuple) and tree.flatten(data):
            share = max(share, min(0.5, LEAST_HELD_OUT / max(1, _rows(data))))
    if isinstance(share, float | int) and not isinstance(share, bool):
        if not isinstance(data, tuple):
            raise ValueError(
                "`validation` must be rows to judge by, since only arrays can be shared out; give "
                f"rows that are not in `data`. Received: validation={validation!r}, data of type "
                f"{type(data).__name__}."
            )
        data, validation = _shared_out(model, data, share)
        held_out = _rows(validation)
    fit, steps, first = _training(model, data, batch_size, steps_per_epoch)
    evaluate = _validation(model, validation, batch_size, validation_steps)
    return Lessons(fit, evaluate, steps, first, held_out)


def _shared_out(model, data, share):
    """Returns `data` without some of its rows, and these."""
    _check_arrays(model, data, "data")
    count = _rows(data)
    number = max(1, round(count * share))
    if not 0 < share < 1 or number >= count:
        raise ValueError(
            "`validation` must be rows to judge by, or a share of the rows between 0 and 1 that "
            f"leaves some. Received: validation={share!r}, {count} rows."
        )
    order = np.random.default_rng(0).permutation(count)
    pick = lambda rows: tree.map_structure(lambda a: np.asarray(a)[rows], data)  # noqa: E731
    return pick(np.sort(order[number:])), pick(np.sort(order[:number]))


def _training(model, data, batch_size, steps):
    """Returns arguments of `fit`, the number of batches of an epoch, and the first one."""
    if isinstance(data, tuple):
        _check_arrays(model, data, "data")
        count = math.ceil(_rows(data) / batch_size) if steps is None else steps
        first = tree.map_structure(lambda a: np.asarray(a)[:batch_size], data[:2])
        given = dict(zip(("x", "y", "sample_weight"), data, strict=False))
        return {**given, "batch_size": batch_size, "steps_per_epoch": steps}, count, first
    if isinstance(data, tf.data.Dataset):
        data = _counted(data) if steps is None else data
        number = _length(data) if steps is None else steps
        if number is None:
            raise ValueError(
                "`data` repeats without end, so `steps_per_epoch` is needed. "
                "Received: steps_per_epoch=None."
            )
        first = next(iter(data.take(1)), None)
        if number == 0 or first is None:
            raise ValueError("`data` must hold at least one batch. Received: an empty dataset.")
        given = {"x": data, "steps_per_epoch": steps, "shuffle": False}
        return given, number, _labelled(model, first, "data")
    if isinstance(data, keras.utils.PyDataset):
        number = data.num_batches if steps is None else steps
        if number is None:
            raise ValueError(
                "`data` does not say how many batches it holds, so `steps_per_epoch` is needed. "
                "Received: steps_per_epoch=None."
            )
        return {"x": data, "steps_per_epoch": steps}, number, _labelled(model, data[0], "data")
    if isinstance(data, Iterator):
        if steps is None:
            raise ValueError(
                "A generator does not say where an epoch ends, so `steps_per_epoch` is needed. "
                "Received: steps_per_epoch=None."
            )
        first = next(data, None)
        if first is None:
            raise ValueError("`data` must yield at least one batch. Received: an empty generator.")
        generator = (batch for batch in itertools.chain([first], data))
        given = {"x": generator, "steps_per_epoch": steps, "shuffle": False}
        return given, steps, _labelled(model, first, "data")
    raise ValueError(_expected("data", data))


def _validation(model, rows, batch_size, steps):
    """Returns arguments of `evaluate`, which can be given more than once."""
    if isinstance(rows, Iterator):
        if steps is None:
            raise ValueError(
                "A generator does not say where it ends, so `validation_steps` is needed. "
                "Received: validation_steps=None."
            )
        parts = [tuple(batch) for batch in itertools.islice(rows, steps)]
        if not parts:
            raise ValueError("`validation` must yield a batch. Received: an empty generator.")
        rows = tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
        steps = None
    if isinstance(rows, tuple):
        _check_arrays(model, rows, "validation")
        given = dict(zip(("x", "y", "sample_weight"), rows, strict=False))
        return {**given, "batch_size": batch_size, "steps": steps}
    if isinstance(rows, tf.data.Dataset):
        if steps is None and rows.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                "`validation` repeats without end, so `validation_steps` is needed. "
                "Received: validation_steps=None."
            )
        first = next(iter(rows.take(1)), None)
        if first is None:
            raise ValueError("`validation` must hold a batch. Received: an empty dataset.")
        _labelled(model, first, "validation")
        return {"x": _counted(rows) if steps is None else rows, "steps": steps}
    if isinstance(rows, keras.utils.PyDataset):
        _labelled(model, rows[0], "validation")
        return {"x": rows, "steps": steps}
    raise ValueError(_expected("validation", rows))


def _counted(dataset):
    """Returns a dataset that knows how many batches it has, which takes reading it once."""
    if dataset.cardinality() != tf.data.UNKNOWN_CARDINALITY:
        return dataset
    number = dataset.reduce(np.int64(0), lambda n, *_: n + 1)
    return dataset.apply(tf.data.experimental.assert_cardinality(number))


def _length(dataset):
    """Returns the number of batches of a dataset, `None` where it never ends."""
    number = int(dataset.cardinality())
    return None if number == tf.data.INFINITE_CARDINALITY else number


def _labelled(model, batch, name):
    """Returns inputs and labels of a batch, checked."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise ValueError(
            f"Batches of `{name}` must be (x, y) or (x, y, sample_weight). Received: "
            f"{type(batch).__name__}{f' of {len(batch)}' if hasattr(batch, '__len__') else ''}."
        )
    _check_inputs(model, batch[0], f"Batches of `{name}`")
    return tuple(tree.map_structure(np.asarray, part) for part in batch[:2])


def _check_arrays(model, data, name):
    """Raises unless `data` are inputs and labels of the same number of rows."""
    if len(data) not in (2, 3):
        raise ValueError(f"{_expected(name, data)[:-1]} of {len(data)}.")
    _check_inputs(model, data[0], f"`{name}`")
    lengths = {len(a) for a in tree.flatten(data) if a is not None}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(
            f"Arrays of `{name}` must have the same number of rows, at least one. "
            f"Received: {sorted(lengths)}."
        )
    for a in tree.flatten(data):
        a = np.asarray(a)
        if a.dtype.kind == "f" and not np.isfinite(a).all():
            raise ValueError(
                f"`{name}` must be finite. Received: "
                f"{np.sum(~np.isfinite(a))} values that are NaN or Inf."
            )


def _check_inputs(model, x, label):
    """Raises unless inputs are as many as the model's, and of their shapes."""
    arrays = [x[i.name] for i in model.inputs] if _is_named(model, x) else tree.flatten(x)
    expected = [tuple(i.shape) for i in model.inputs]
    received = [tuple(np.shape(a)) for a in arrays]
    if not shapes_fit(expected, received):
        raise ValueError(f"{label} must hold inputs of shapes {expected}. Received: {received}.")


def shapes_fit(expected, received) -> bool:
    """Whether shapes are as many as expected, and these but for rows and free axes."""
    return len(expected) == len(received) and all(
        len(e) == len(r) and all(m in (None, n) for m, n in zip(e[1:], r[1:], strict=True))
        for e, r in zip(expected, received, strict=True)
    )


def _is_named(model, x):
    return isinstance(x, Mapping) and set(x) >= {i.name for i in model.inputs}


def _rows(data):
    return len(tree.flatten(data)[0])


def _expected(name, value):
    return (
        f"`{name}` must be a tuple (x, y) of arrays, a `tf.data.Dataset`, a `PyDataset` or a "
        f"generator of batches (x, y). Received: {type(value).__name__}."
    )


def kinds_of(answers, labels=None) -> list[str]:
    """Returns what each of a model's outputs is, told from some rows.

    Args:
        answers: What the model answers.
        labels: The labels of these rows, if logits are to be told, too: of integers.

    Returns:
        A list of `"probabilities"` of classes, `"logits"` of classes, and `""` for all else.
    """
    answers = [np.asarray(a, "float32") for a in tree.flatten(answers)]
    labels = tree.flatten(labels) if labels is not None else [None] * len(answers)
    if len(labels) != len(answers):
        labels = [None] * len(answers)
    return [_kind(a, y) for a, y in zip(answers, labels, strict=True)]


def _kind(a, y):
    if a.ndim < 2 or a.shape[-1] < 2:
        return ""
    if a.min() >= 0 and np.max(np.abs(a.sum(-1) - 1)) < SUM_TOLERANCE:
        return "probabilities"
    return "logits" if y is not None and _numbers_classes(a, np.asarray(y)) else ""


def _numbers_classes(a, y):
    """Whether labels are integers, one for each row of outputs."""
    return y.dtype.kind in "iu" and y.shape in (a.shape[:-1], (*a.shape[:-1], 1))


def cross_entropy(answers, labels) -> tuple[keras.losses.Loss, str]:
    """Returns the loss of a model of classes, and why it is that.

    Args:
        answers: Outputs of the model for some rows.
        labels: Their labels.

    Raises:
        ValueError: If answers and labels do not say which loss.
    """
    kinds = kinds_of(answers, labels)
    answers, labels = tree.flatten(answers), tree.flatten(labels)
    if len(answers) == len(labels) == 1 and kinds[0]:
        a, y = np.asarray(answers[0]), np.asarray(labels[0])
        if _numbers_classes(a, y):
            if y.min() < 0 or y.max() >= a.shape[-1]:
                raise ValueError(
                    f"Labels must be integers from 0 to {a.shape[-1] - 1}, one for each output. "
                    f"Received: {y.min()} to {y.max()}."
                )
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=kinds[0] == "logits")
            return loss, f", since labels are integers and outputs {kinds[0]}"
        if y.shape == a.shape and kinds_of([y]) == ["probabilities"]:
            loss = keras.losses.CategoricalCrossentropy()
            return loss, ", since labels and outputs are probabilities"
    raise ValueError(
        "`loss` must be given, or the model compiled with one: it is chosen for classes only, "
        "integer labels, or one share for each class of a softmax. Received: "
        f"labels of {[(np.asarray(y).dtype.name, np.shape(y)) for y in labels]}, outputs of "
        f"{[tuple(np.shape(a)) for a in answers]}."
    )
