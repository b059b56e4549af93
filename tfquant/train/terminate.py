"""`TerminateOnNaN`: training that diverged stops, and says where."""

import math

import numpy as np

from tfquant.train.callback import QuantizationCallback


class TerminateOnNaN(QuantizationCallback):
    """Stops training when the loss, a weight or a grid is NaN or infinite, and names the layer.

    For quantized models `keras.callbacks.TerminateOnNaN` is not enough: rounding to a grid turns a
    NaN into a number, so that the loss can look well behind a layer that is ruined. This one looks
    at the loss after every batch, and at all weights and grids after every epoch.

    Raises:
        ValueError: When training starts, if the model has no quantized layers.

    Example:

    ```python
    q.fit(images, labels, epochs=3, callbacks=[tfq.TerminateOnNaN()])
    ```
    """

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the loss."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(float(loss)) and not self.model.stop_training:
            self._stop(f"batch {batch}: the loss is {float(loss)}")

    def on_epoch_end(self, epoch, logs=None):
        """Looks at weights and grids."""
        if self._ruined() and not self.model.stop_training:
            self._stop(f"epoch {epoch}: weights are not finite")

    def _stop(self, reason):
        self.model.stop_training = True
        names = self._ruined()
        where = "no weight or grid: look at the loss and at its labels"
        if names:
            more = f" and {len(names) - 1} more layers" if len(names) > 1 else ""
            where = f"weights or grids of '{names[0]}'{more}"
        self.say(f"{reason}; training stops. NaN or Inf is in {where}.")

    def _ruined(self):
        return [layer.name for layer in self.layers() if not _is_finite(layer)]


def _is_finite(layer):
    return all(np.isfinite(np.asarray(v.numpy(), "float64")).all() for v in layer.variables)
