"""`KeepBest`: a model ends as it was at its best."""

import contextlib
import math

import keras
import tensorflow as tf

from tfquant.train.teacher import quantizers

# Names of losses and errors hold one of these: the less of them the better.
LESS = ("loss", "err", "mae", "mse", "mape", "msle", "divergence", "entropy", "hinge", "poisson")


class KeepBest(keras.callbacks.Callback):
    """Keeps the weights of the epoch that validation likes best, the start among them.

    Epochs in which a schedule has other grids than the model began with are no candidates. A loss
    that is not finite stops training.

    Args:
        monitor: Name of a metric, or `"loss"`; `None` for the first one of accuracy, or the loss.

    Attributes:
        name: What judges.
        start: What it was at first.
        value: What it is at the best.
        epoch: Epoch of the best, from 1; 0 for the start.
        history: The logs of all epochs, as `History.history`.
        diverged: What was not finite, in words.
    """

    def __init__(self, monitor: str | None = None):
        super().__init__()
        self.name, self.epoch, self.history, self.diverged = monitor, 0, {}, ""

    def begin(self, model, scores: dict) -> None:
        """Notes what the model is like before training.

        Raises:
            ValueError: If there is no metric of the name.
        """
        known = ", ".join(map(repr, scores))
        if self.name is None:
            self.name = next((name for name in scores if "acc" in name.lower()), "loss")
        self.name = self.name.removeprefix("val_")
        if self.name not in scores:
            raise ValueError(f"`monitor` must be one of {known}. Received: {self.name!r}.")
        self.start = self.value = float(scores[self.name])
        if not math.isfinite(self.start):
            raise ValueError(
                f"'{self.name}' of the validation rows must be finite before training. "
                f"Received: {self.start}; look at the loss, and at inputs and labels."
            )
        self._key = self._rank(scores)
        self._grids, self._weights = _grids(model), model.get_weights()

    @contextlib.contextmanager
    def best(self, model):
        """Gives `model` the best weights when the body ends, however it does."""
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            if "must be finite" not in str(error):
                raise
            self.diverged = "values of a layer are not finite"
        finally:
            if hasattr(self, "_weights"):
                model.set_weights(self._weights)
                del self._weights

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the loss."""
        if not math.isfinite(float((logs or {}).get("loss", 0.0))) and not self.diverged:
            self.diverged = "the loss is not finite"
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        """Keeps the weights, if validation likes them better."""
        logs = logs or {}
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        scores = {name.removeprefix("val_"): v for name, v in logs.items() if name[:4] == "val_"}
        if self.diverged or self.name not in scores or _grids(self.model) != self._grids:
            return
        key = self._rank(scores)
        if all(map(math.isfinite, key)) and key > self._key:
            self._key, self.value, self.epoch = key, float(scores[self.name]), epoch + 1
            self._weights = self.model.get_weights()

    def _rank(self, scores):
        value = float(scores[self.name])
        less = any(part in self.name.lower() for part in LESS)
        return (-value if less else value, -float(scores.get("loss", 0.0)))


def _grids(model):
    return [(quantizer.active, quantizer.spec) for quantizer in quantizers(model)]
