"""Callbacks that change how a model is quantized as epochs go by."""

import dataclasses
import itertools
import logging

from keras import tree

from tfquant.quantizers import MovingAverage, RecordingScope, Watch
from tfquant.train.callback import QuantizationCallback, calibration_samples

_logger = logging.getLogger("tfquant")

# Rows at a time when ranges are set again.
BATCH_SIZE = 32


class FloatWarmup(QuantizationCallback):
    """Trains in float for the first epochs, then quantizes.

    When it starts to quantize, weights are fitted anew, and ranges are set from the rows that the
    model was calibrated with.

    Args:
        epochs: Number of epochs in float.
        observer: What sets the ranges afterwards, as in `tfq.calibrate`.

    Raises:
        ValueError: If `epochs` is no positive integer; when training starts, if the model was not
            calibrated.
    """

    def __init__(self, epochs: int, observer="percentile"):
        super().__init__()
        self.epochs = _epoch("epochs", epochs, least=1)
        self.observer = observer

    def on_train_begin(self, logs=None):
        """Checks that the model was calibrated."""
        super().on_train_begin(logs)
        calibration_samples(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        """Turns quantization off, or on."""
        if epoch < self.epochs:
            self._set_active(False)
        elif epoch == self.epochs:
            self._set_active(True)
            for _, variable, quantizer in self.weights():
                quantizer.fit(variable.value)
            self._set_ranges()
            self.say("quantizing from here on")

    def on_epoch_end(self, epoch, logs=None):
        """Says in the logs whether the epoch was quantized."""
        if logs is not None:
            logs["quantized"] = float(epoch >= self.epochs)

    def on_train_end(self, logs=None):
        """Leaves the model quantized."""
        if any(not quantizer.active for quantizer in self._quantizers()):
            _logger.warning("Training ended within the float warm-up of %d epochs.", self.epochs)
            self._set_active(True)

    def _quantizers(self):
        return [quantizer for *_, quantizer in self.weights()] + self.activation_quantizers()

    def _set_active(self, active):
        changed = [quantizer for quantizer in self._quantizers() if quantizer.active != active]
        for quantizer in changed:
            quantizer.active = active
        if changed:
            self.trace_again()

    def _set_ranges(self):
        model, samples = calibration_samples(self.model)
        watch = Watch(self.observer)
        for first in range(0, len(samples[0]), BATCH_SIZE):
            rows = [array[first : first + BATCH_SIZE] for array in samples]
            with RecordingScope(see=watch.see):
                model(tree.pack_sequence_as(model.input, rows), training=False)
        watch.set_params()


class PrecisionSchedule(QuantizationCallback):
    """Lowers the width of weights step by step, down to that of the model's scheme.

    A model that loses too much when it goes to few bits at once often keeps it when it goes there
    gradually (Zhuang et al. 2018, arXiv:1711.00205, section 3.2).

    Args:
        num_bits: Dict from the epoch at which a width begins to the width, such as
            `{0: 8, 4: 6, 8: 4}`. Weights that the scheme keeps wider stay so.

    Raises:
        ValueError: If an epoch is negative, epoch 0 is missing, a width goes up or is outside 2
            to 8; when training starts, if the last width is not the model's.
    """

    def __init__(self, num_bits: dict):
        super().__init__()
        stages = sorted((_epoch("num_bits", e), _width(b)) for e, b in dict(num_bits).items())
        widths = [width for _, width in stages]
        if not stages or stages[0][0] != 0:
            raise ValueError(
                f"`num_bits` must say the width from epoch 0 on. Received: num_bits={num_bits}."
            )
        if any(b >= a for a, b in itertools.pairwise(widths)):
            raise ValueError(f"Widths must go down. Received: num_bits={num_bits}.")
        self.stages = dict(stages)

    def on_train_begin(self, logs=None):
        """Notes the widths of the scheme and checks that the schedule ends there."""
        super().on_train_begin(logs)
        self._own = [quantizer.spec for *_, quantizer in self.weights()]
        last, narrowest = min(self.stages.values()), min(spec.num_bits for spec in self._own)
        if last != narrowest:
            raise ValueError(
                f"The schedule must end at the {narrowest} bits of the model's scheme. "
                f"Received: {last} bits."
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the width of the epoch; where one begins, fits the grids to the weights anew."""
        begins = max(start for start in self.stages if start <= epoch)
        self._set(self.stages[begins], fit=epoch == begins)

    def on_epoch_end(self, epoch, logs=None):
        """Says the width in the logs."""
        if logs is not None:
            logs["weight_bits"] = min(q.spec.num_bits for *_, q in self.weights())

    def on_train_end(self, logs=None):
        """Leaves the model with the widths of its scheme."""
        if any(
            quantizer.spec != own
            for (*_, quantizer), own in zip(self.weights(), self._own, strict=True)
        ):
            _logger.warning("Training ended before the precision schedule did.")
            self._set(min(self.stages.values()), fit=True)

    def _set(self, num_bits, fit):
        changed = False
        for (_, variable, quantizer), own in zip(self.weights(), self._own, strict=True):
            spec = dataclasses.replace(own, num_bits=max(num_bits, own.num_bits))
            if spec != quantizer.spec or (fit and spec.num_bits < 8):
                changed |= spec != quantizer.spec
                quantizer.spec = spec
                if fit:
                    quantizer.fit(variable.value)
        if changed:
            self.say(f"weights of {num_bits} bits from here on")
            self.trace_again()


class _Freeze(QuantizationCallback):
    """Has something stand still from some epoch on. Abstract.

    Args:
        epoch: The epoch.
    """

    what = flag = log = ""

    def __init__(self, epoch: int):
        super().__init__()
        self.epoch = _epoch("epoch", epoch)

    def moving(self) -> list:
        """Returns the objects whose `flag` says whether they stand still."""
        raise NotImplementedError

    def on_epoch_begin(self, epoch, logs=None):
        """Freezes, when it is time."""
        moving = [x for x in self.moving() if not getattr(x, self.flag)]
        if epoch >= self.epoch and moving:
            for x in moving:
                setattr(x, self.flag, True)
            self.say(f"{len(moving)} {self.what} stand still from here on")
            self.trace_again()

    def on_epoch_end(self, epoch, logs=None):
        """Says in the logs whether they stand still."""
        if logs is not None:
            logs[self.log] = float(epoch >= self.epoch)


class FreezeRanges(_Freeze):
    """Stops the moving averages of activation ranges, so that the last epochs train on still grids.

    Args:
        epoch: Epoch from which ranges stand still.

    Raises:
        ValueError: If `epoch` is no integer of 0 or more.
    """

    what, flag, log = "ranges", "frozen", "ranges_frozen"

    def moving(self) -> list:
        """Returns the quantizers that take averages."""
        return [q for q in self.activation_quantizers() if isinstance(q, MovingAverage)]


class FreezeBatchNorm(_Freeze):
    """Normalizes by the moving statistics from some epoch on, as inference does.

    Scale and offset of the batch norms are trained on (Krishnamoorthi 2018, arXiv:1806.08342,
    section 3.2.2).

    Args:
        epoch: Epoch from which statistics stand still.

    Raises:
        ValueError: If `epoch` is no integer of 0 or more.
    """

    what, flag, log = "batch norms", "batch_norm_frozen", "batch_norm_frozen"

    def moving(self) -> list:
        """Returns the layers with a batch norm."""
        return [wrapper for wrapper in self.wrappers() if wrapper.batch_norm is not None]


def _epoch(name, value, least=0):
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must hold integers of {least} or more. Received: {value!r}.")
    return value


def _width(value):
    if not isinstance(value, int) or not 2 <= value <= 8:
        raise ValueError(f"`num_bits` must hold widths from 2 to 8. Received: {value!r}.")
    return value
