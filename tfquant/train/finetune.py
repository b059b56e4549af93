"""`finetune`: training with quantization by the recipe that a model's grids need."""

import contextlib
import dataclasses
import logging
import math

import keras
import numpy as np
from keras import tree

from tfquant.graph.walk import leaves
from tfquant.rewrite.model import QuantizedModel
from tfquant.rewrite.validate import check_is_model
from tfquant.train.keep import KeepBest
from tfquant.train.lessons import cross_entropy, kinds_of, lessons, shapes_fit
from tfquant.train.schedules import FreezeBatchNorm
from tfquant.train.teacher import Lesson, activation_quantizers, answer, float_copy, quantizers
from tfquant.wrappers import QuantizeWrapper

_logger = logging.getLogger("tfquant")

# Moving averages of a momentum of 0.99 have forgotten where they began after so many steps; in
# fewer they would end between the statistics of the float model and those of some batches.
LEAST_MOVING = 500

# Softness of the teacher's answers.
TEMPERATURE = 4.0


@dataclasses.dataclass(frozen=True)
class Pace:
    """How a model is trained whose narrowest grid has some number of bits.

    Attributes:
        epochs: Epochs, where the caller says none.
        learning_rate: First learning rate of a cosine that ends at zero, of Adam.
        teacher: Share of the float model's answers in the loss.
        moving: Share of the epochs in which batch norms take the statistics of batches.
    """

    epochs: int
    learning_rate: float
    teacher: float
    moving: float


# Each holds for that many bits and more, up to the next.
PACES = {
    2: Pace(48, 6e-4, 0.9, 0.75),
    3: Pace(24, 6e-4, 0.9, 0.75),
    4: Pace(8, 3e-4, 0.9, 0.75),
    5: Pace(4, 1e-4, 0.9, 0.5),
    7: Pace(2, 1e-5, 1.0, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """What `finetune` made of a model.

    Attributes:
        monitor: What candidates were judged by, on the validation rows.
        start: What it was before training.
        best: What it is now.
        epoch: Epoch, counted from 1, after which the model was what it is now; 0 for the start.
        history: What each epoch left, as `keras.callbacks.History.history`.
        settings: Rate, loss, teacher and the like, in words.
    """

    monitor: str
    start: float
    best: float
    epoch: int
    history: dict
    settings: str

    def __str__(self) -> str:
        kept = f"that of epoch {self.epoch}" if self.epoch else "the start: no epoch was better"
        return f"{self.monitor} {self.start:.4f} to {self.best:.4f}; kept {kept} ({self.settings})"


def finetune(
    model,
    data,
    *,
    validation=None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    teacher="float",
    loss=None,
    monitor: str | None = None,
    batch_size: int = 32,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    callbacks=(),
    verbose="auto",
):
    """Trains a calibrated model by `fit`, and leaves it as it was at its best.

    The model's narrowest grid decides the learning rate, which falls to zero along a cosine, the
    share of the float model's answers in the loss, and the epoch from which batch norms stand
    still. The start is a candidate, too: on the validation rows the model never ends below it.

    Interrupting it leaves the best model so far, as an error does. A loss that is not finite stops
    it, with a warning.

    Args:
        model: Model from `quantize_model`, calibrated. Trained in place. Where it is compiled, its
            loss and metrics are used and its optimizer is not; where it is not, it will be.
        data: `(x, y)` or `(x, y, sample_weight)` of arrays, lists or dicts of arrays, or a
            `tf.data.Dataset`, `keras.utils.PyDataset` or generator of batches of these, as `fit`
            takes them.
        validation: Rows that the model is judged by, in one of these forms, or the share of the
            rows of arrays that is held out, drawn by chance; `None` holds out one in eight, but
            100 rows or, of few, half.
        epochs: Epochs; `None` for as many as the scheme needs: 2 of eight bits to 48 of two.
        learning_rate: First learning rate, `None` for the scheme's.
        teacher: `"float"` learns from the model in float, as it was when it was calibrated; another
            Keras model from its answers; `None` from labels alone.
        loss: As of `compile`. `None` for that of the compiled model, else the cross entropy, where
            labels and outputs are classes.
        monitor: Name of what judges, a metric or `"loss"`: the less the better for losses and
            errors, else the more. `None` for the first metric of accuracy, and for the loss where
            there is none. Between equals the loss decides.
        batch_size: Rows in a batch of arrays.
        steps_per_epoch: Batches in an epoch; needed where the data do not say it.
        validation_steps: Batches to judge by; needed for a generator.
        callbacks: As of `fit`.
        verbose: As of `fit`.

    Returns:
        `model`. Its `finetuning` says what came of it.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not quantized or not calibrated, the data do not fit it, there
            is nothing to judge by, or no loss is known.

    Example:

    ```python
    q = tfq.calibrate(tfq.quantize_model(model, "w4a8"), images[:200])
    tfq.finetune(q, (images, labels), validation=(more_images, more_labels))
    print(q.finetuning)
    ```
    """
    _check_model(model)
    pace = _pace(model, epochs, learning_rate)
    given = lessons(model, data, validation, batch_size, steps_per_epoch, validation_steps)
    taught = float_copy(model) if teacher == "float" else teacher
    answers = answer(model if taught is None else taught, given.first[0])
    _check_teacher(model, answers)
    rate = keras.optimizers.schedules.CosineDecay(pace.learning_rate, given.steps * pace.epochs)
    optimizer, keep = keras.optimizers.Adam(rate), KeepBest(monitor)
    said = [f"learning rate {pace.learning_rate:g}, falling to 0 in {pace.epochs} epochs"]
    if loss is not None or not model.compiled:
        loss, why = (loss, "") if loss is not None else cross_entropy(answers, given.first[1])
        said.append(f"loss {getattr(loss, 'name', loss)}{why}")
        model.compile(optimizer, loss, metrics=["accuracy"] if why else None)
    lesson = None
    if taught is not None:
        kinds = kinds_of(answers, given.first[1])
        lesson = Lesson(model, taught, pace.teacher, TEMPERATURE, kinds)
        said.append(f"{pace.teacher:.0%} of it by the answers of the teacher")
    moving = math.ceil(pace.epochs * pace.moving)
    if moving * given.steps < LEAST_MOVING:
        moving = 0
    still = [_StillNorms(moving)] if _norms(model) else []
    if given.held_out:
        said.append(f"{given.held_out} of the rows held out to judge by")
    with _in_training(model, optimizer, lesson), keep.best(model):
        keep.begin(model, model.evaluate(**given.validation, verbose=0, return_dict=True))
        if verbose:
            print(f"finetune: {'; '.join(said)}; {keep.name} {keep.start:.4f}", flush=True)
        model.fit(
            **given.training,
            **given.judging(),
            epochs=pace.epochs,
            callbacks=[*callbacks, *still, keep],
            verbose=verbose,
        )
    model.finetuning = Finetuning(
        keep.name, keep.start, keep.value, keep.epoch, keep.history, "; ".join(said)
    )
    if keep.diverged:
        _logger.warning(
            "Training of '%s' stopped, since %s; %s was kept. Try a `learning_rate` below %g.",
            model.name,
            keep.diverged,
            f"epoch {keep.epoch}" if keep.epoch else "the start",
            pace.learning_rate,
        )
    if verbose:
        print(f"finetune: {model.finetuning}", flush=True)
    return model


def _check_model(model):
    """Raises unless the model is quantized and calibrated."""
    check_is_model(model)
    if not isinstance(model, QuantizedModel):
        raise ValueError(
            f"A model from tfq.quantize_model is expected. Received: '{model.name}', a "
            f"{type(model).__name__}."
        )
    for layer in leaves(model):
        if any(not q.calibrated for q in activation_quantizers(layer)):
            raise ValueError(
                f"A calibrated model is expected. Received: '{model.name}', in which the range of "
                f"'{layer.name}' was never set. Call tfq.calibrate(model, data) first."
            )


def _pace(model, epochs, learning_rate):
    """Returns the `Pace` of a model, with what the caller says in place of its own."""
    widths = [q.spec.num_bits for q in quantizers(model) if q.spec is not None]
    pace = PACES[max((bits for bits in PACES if bits <= min(widths, default=8)), default=2)]
    if epochs is not None:
        if not isinstance(epochs, int | np.integer) or isinstance(epochs, bool) or epochs < 1:
            raise ValueError(f"`epochs` must be a positive integer. Received: epochs={epochs!r}.")
        pace = dataclasses.replace(pace, epochs=int(epochs))
    if learning_rate is not None:
        if not (isinstance(learning_rate, float | int) and 0 < learning_rate < math.inf):
            raise ValueError(
                "`learning_rate` must be a positive number, the first of a cosine. "
                f"Received: learning_rate={learning_rate!r}."
            )
        pace = dataclasses.replace(pace, learning_rate=float(learning_rate))
    return pace


def _check_teacher(model, answers):
    """Raises unless a teacher answers in the form of the model."""
    expected = [tuple(x.shape) for x in model.outputs]
    received = [tuple(x.shape) for x in tree.flatten(answers)]
    if not shapes_fit(expected, received):
        raise ValueError(
            f"`teacher` must answer in the shapes {expected} of the model's outputs. "
            f"Received: {received}."
        )


@contextlib.contextmanager
def _in_training(model, optimizer, lesson):
    """Lends `model` an optimizer and a lesson; takes back these, and what stands still."""
    own = model.optimizer
    norms = [(layer, layer.batch_norm_frozen) for layer in _norms(model)]
    model.optimizer, model.lesson = optimizer, lesson
    model.make_train_function(force=True)
    try:
        yield
    finally:
        model.optimizer, model.lesson = own, None
        for layer, frozen in norms:
            layer.batch_norm_frozen = frozen
        model.train_function = model.test_function = model.predict_function = None


def _norms(model):
    """Returns the layers with a batch norm."""
    return [x for x in leaves(model) if isinstance(x, QuantizeWrapper) and x.batch_norm is not None]


class _StillNorms(FreezeBatchNorm):
    """Says nothing of it: what `finetune` does, it says before."""

    def say(self, message: str) -> None:
        """Does nothing."""
