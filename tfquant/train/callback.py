"""What the callbacks of quantization-aware training share."""

import keras

from tfquant.graph.walk import leaves, models
from tfquant.quantizers import WeightQuantizer
from tfquant.wrappers import Quantize, QuantizeWrapper


class QuantizationCallback(keras.callbacks.Callback):
    """A callback that acts on the quantized layers of the model, which may be nested or distilled.

    Raises:
        ValueError: When training starts, if the model has no quantized layers.
    """

    def on_train_begin(self, logs=None):
        """Checks the model."""
        if not self.layers():
            raise ValueError(
                f"{type(self).__name__} expects a model from tfq.quantize_model. "
                f"Received: '{self.model.name}', which has no quantized layers."
            )

    def layers(self) -> list:
        """Returns the `QuantizeWrapper` and `Quantize` layers."""
        return [x for x in leaves(self.model) if isinstance(x, (Quantize, QuantizeWrapper))]

    def wrappers(self) -> list:
        """Returns the `QuantizeWrapper` layers."""
        return [layer for layer in self.layers() if isinstance(layer, QuantizeWrapper)]

    def weights(self) -> list:
        """Returns `(wrapper, variable, quantizer)` of every weight on an integer grid."""
        return [
            (wrapper, variable, quantizer)
            for wrapper in self.wrappers()
            for variable, quantizer in wrapper.weight_quantizers
            if isinstance(quantizer, WeightQuantizer)
        ]

    def activation_quantizers(self) -> list:
        """Returns the quantizers of all activations."""
        found = []
        for layer in self.layers():
            if isinstance(layer, Quantize):
                found.append(layer.quantizer)
            else:
                found += [q for site in layer.output_quantizers for q in site if q is not None]
        return found

    def trace_again(self) -> None:
        """Lets the change of a Python attribute reach the compiled functions."""
        self.model.make_train_function(force=True)
        for inner in models(self.model):
            inner.test_function = inner.predict_function = None

    def say(self, message: str) -> None:
        """Prints one line above the progress bar."""
        print(f"{type(self).__name__}: {message}", flush=True)


def calibration_samples(model):
    """Returns the quantized model inside `model` and the rows that it was calibrated with.

    Raises:
        ValueError: If it was not calibrated.
    """
    for inner in models(model):
        samples = getattr(inner, "calibration_samples", None)
        if samples is not None:
            return inner, samples
    raise ValueError(
        f"Call tfq.calibrate(model, data) before training '{model.name}': its rows are needed to "
        "set ranges again."
    )
