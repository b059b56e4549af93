"""Weights that flip between two integers: pulled to the middle of their step, or frozen.

Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", arXiv:2203.11086.
"""

import keras
from keras import ops

from tfquant.train.callback import QuantizationCallback


class DampenOscillation(QuantizationCallback):
    """Adds a loss that pulls weights to the integers they round to.

        loss += strength * sum((round(w / scale) * scale - w)^2)        (section 4.1)

    Clipped weights are not pulled, and steps get no gradient from it.

    Args:
        strength: Number, or function from the epoch to a number; the paper lets it rise.

    Raises:
        ValueError: If a number is negative.
    """

    def __init__(self, strength=1e-3):
        super().__init__()
        if not callable(strength) and not strength >= 0:
            raise ValueError(f"`strength` must not be negative. Received: strength={strength}.")
        self.strength = strength

    def on_train_begin(self, logs=None):
        """Lets every quantized weight add its loss."""
        super().on_train_begin(logs)
        self._value = keras.Variable(0.0, dtype="float32", trainable=False, name="dampening")
        for wrapper in {wrapper for wrapper, *_ in self.weights()}:
            wrapper.dampening = lambda: self._value.value
        self.trace_again()

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the strength of the epoch."""
        self._value.assign(self.strength(epoch) if callable(self.strength) else self.strength)

    def on_epoch_end(self, epoch, logs=None):
        """Says the strength in the logs."""
        if logs is not None:
            logs["dampening"] = float(self._value.numpy())

    def on_train_end(self, logs=None):
        """Takes the loss away."""
        for wrapper, *_ in self.weights():
            wrapper.dampening = None
        self.trace_again()


class FreezeOscillation(QuantizationCallback):
    """Freezes weights that flip too often at the integer where they mostly were.

        f <- momentum * o + (1 - momentum) * f,  o = 1 when an integer turns back, else 0
        a <- momentum * q + (1 - momentum) * a
        where f > threshold:  w = round(a) * scale from then on         (section 4.2, algorithm 1)

    What it knows of the past is lost when a run is broken off.

    Args:
        threshold: Frequency of turns, in turns a step, above which a weight freezes.
        momentum: Weight of the newest step in both averages.

    Raises:
        ValueError: If an argument is outside 0 to 1.
    """

    def __init__(self, threshold: float = 0.02, momentum: float = 0.01):
        super().__init__()
        for name, value in (("threshold", threshold), ("momentum", momentum)):
            if not 0 < value <= 1:
                raise ValueError(f"`{name}` must be above 0, at most 1. Received: {name}={value}.")
        self.threshold, self.momentum = threshold, momentum

    def on_train_begin(self, logs=None):
        """Starts to watch."""
        super().on_train_begin(logs)
        self._seen = [_Flips(variable, quantizer) for _, variable, quantizer in self.weights()]

    def on_train_batch_end(self, batch, logs=None):
        """Counts turns, and puts frozen weights back."""
        for flips in self._seen:
            flips.update(self.threshold, self.momentum)

    def on_epoch_end(self, epoch, logs=None):
        """Says the share of frozen weights in the logs."""
        if logs is not None:
            frozen = sum(float(ops.sum(flips.frozen)) for flips in self._seen)
            total = sum(flips.variable.value.shape.num_elements() for flips in self._seen)
            logs["frozen_weights"] = frozen / total


class _Flips:
    """The integers of one weight, step by step."""

    def __init__(self, variable, quantizer):
        self.variable, self.quantizer = variable, quantizer
        self.integers = self._integers()
        self.average = self.integers
        zeros = ops.zeros_like(self.integers)
        self.direction, self.frequency, self.frozen = zeros, zeros, zeros

    def _integers(self):
        w = ops.cast(self.variable.value, "float32")
        scale, spec = self.quantizer.params(w).scale, self.quantizer.spec
        return ops.clip(ops.round(self.quantizer.latent(w) / scale), spec.qmin, spec.qmax)

    def update(self, threshold, momentum):
        integers = self._integers()
        moved = ops.sign(integers - self.integers)
        turned = ops.cast(moved * self.direction < 0, "float32")
        self.direction = ops.where(moved != 0, moved, self.direction)
        self.frequency = momentum * turned + (1 - momentum) * self.frequency
        self.average = momentum * integers + (1 - momentum) * self.average
        newly = ops.logical_and(self.frequency > threshold, self.frozen == 0)
        self.frozen = ops.where(newly, 1.0, self.frozen)
        self.integers = ops.where(newly, ops.round(self.average), integers)
        if float(ops.sum(self.frozen)):
            self.integers = ops.where(
                self.frozen == 1, ops.where(newly, self.integers, self._held), self.integers
            )
            w = ops.cast(self.variable.value, "float32")
            held = self.integers * self.quantizer.params(w).scale
            self.variable.assign(ops.where(self.frozen == 1, held, w))
        self._held = self.integers
