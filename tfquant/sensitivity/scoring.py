"""`Scoring`: a number that says how well a model does on rows with answers."""

import math
import numbers

import numpy as np

from tfquant.data.batches import batches, joined

# Samples of the rows, drawn with replacement, that say how far a score may be off by chance.
RESAMPLES = 200


class Scoring:
    """Scores outputs on validation rows; more is better.

    Args:
        model: Float model.
        validation: `(x, y)`: inputs as of `calibrate`, and an array (or list) of answers, row by
            row.
        metric: Function of the answers and the outputs of the model, an array (a list of several),
            that returns a number of which more is better; `None` or `"accuracy"` for the share of
            rows whose largest output is the answer.

    Attributes:
        arrays: Inputs, a list.
        answers: Answers, likewise.
        name: Name of the metric.

    Raises:
        TypeError: If the metric is neither.
        ValueError: If `validation` is no such pair.
    """

    def __init__(self, model, validation, metric=None):
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise ValueError(
                "`validation` must be a pair of inputs and answers, (x, y). Received: "
                f"{type(validation).__name__}."
            )
        if metric not in (None, "accuracy") and not callable(metric):
            raise TypeError(
                "`metric` must be a function of the answers and the outputs, 'accuracy' or None. "
                f"Received: {metric!r}."
            )
        x, y = validation
        parts = list(batches(x, model.inputs, 1024))
        self.arrays = joined(parts)
        self._one = not (isinstance(y, list) and _several(y))
        self.answers = [np.asarray(a) for a in ([y] if self._one else y)]
        if any(len(a) != len(self.arrays[0]) for a in self.answers):
            raise ValueError(
                "`validation` must have an answer for each row. Received: "
                f"{len(self.arrays[0])} rows, {len(self.answers[0])} answers."
            )
        self._metric = metric if callable(metric) else _accuracy
        self.name = getattr(self._metric, "__name__", "metric").strip("_")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __call__(self, outputs, rows=None) -> float:
        """Returns the score of outputs.

        Args:
            outputs: List of arrays, one for each output of the model.
            rows: Numbers of the rows to score, `None` for all of them.

        Raises:
            ValueError: If the metric raises, or returns no finite number.
        """
        take = lambda x: x if rows is None else x[rows]  # noqa: E731
        y = [take(a) for a in self.answers]
        found = [take(a) for a in outputs]
        try:
            score = self._metric(y[0] if self._one else y, found[0] if len(found) == 1 else found)
        except Exception as error:  # Whatever somebody's function raises.
            raise ValueError(
                "`metric` must take the answers and the outputs. Received: one that raises "
                f"{type(error).__name__}: {error}"
            ) from error
        array = np.asarray(score)
        if array.size != 1 or not isinstance(array.reshape(-1)[0].item(), numbers.Real):
            raise ValueError(f"`metric` must return a number. Received: {score!r}.")
        score = float(array.reshape(-1)[0])
        if not math.isfinite(score):
            raise ValueError(f"`metric` must return a finite number. Received: {score}.")
        return score

    def fingerprint(self, outputs) -> list[float]:
        """Returns scores of outputs and of some that are wrong, by which metrics differ.

        Args:
            outputs: Those of the float model.
        """
        found = [self(outputs)]
        for wrong in ([y[::-1] for y in outputs], [np.roll(y, 1, axis=0) * 0.9 for y in outputs]):
            try:
                found.append(self(wrong))
            except ValueError:  # It need not take what no model computes.
                found.append(None)
        return found

    def deviation(self, expected, outputs, seed: int = 0) -> float:
        """Returns the standard deviation of the difference of two scores on rows like these.

        It is that over samples of the rows, drawn with replacement: both are scored on the same
        ones, so that only what they answer differently counts.

        Args:
            expected: Outputs of the one.
            outputs: Those of the other.
            seed: Of what is drawn.
        """
        rng, count = np.random.default_rng(seed), len(self)
        found = []
        for _ in range(RESAMPLES):
            rows = rng.integers(0, count, count)
            found.append(self(outputs, rows) - self(expected, rows))
        return float(np.std(found))

    def resolution(self, outputs, seed: int = 0) -> float:
        """Returns the standard deviation of one score on rows like these."""
        rng, count = np.random.default_rng(seed), len(self)
        draws = (rng.integers(0, count, count) for _ in range(RESAMPLES))
        return float(np.std([self(outputs, rows) for rows in draws]))


def outputs_of(q, arrays) -> list:
    """Returns the outputs of a model, as the device computes those of a quantized one.

    Args:
        q: Keras model.
        arrays: Rows, one array for each input.
    """
    size = q.inputs[0].shape[0] or 32
    found = q.predict(arrays if len(arrays) > 1 else arrays[0], batch_size=size, verbose=0)
    if isinstance(found, dict):
        found = [found[name] for name in q.output_names]
    return [np.asarray(y) for y in (found if isinstance(found, list | tuple) else [found])]


def _several(y):
    return all(hasattr(a, "shape") and np.ndim(a) for a in y)


def _accuracy(y, outputs):
    """Returns the share of rows whose largest output is the answer, a class or one-hot."""
    if isinstance(outputs, list) or outputs.ndim < 2 or outputs.shape[-1] < 2:
        raise TypeError("accuracy needs one output of scores for each class; give a metric")
    if y.shape == outputs.shape and y.ndim == outputs.ndim:
        y = y.argmax(-1)
    if y.ndim == outputs.ndim and y.shape[-1] == 1:
        y = y[..., 0]
    if y.shape != outputs.shape[:-1]:
        raise TypeError(f"answers of shape {y.shape} do not fit outputs of {outputs.shape}")
    return np.mean(outputs.argmax(-1) == y)
