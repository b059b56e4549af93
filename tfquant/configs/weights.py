"""Layers of any type: weights in integers, arithmetic in float."""

import keras

from tfquant.numerics import QuantSpec
from tfquant.quantizers import AbsMax, Float16
from tfquant.wrappers import QuantizeConfig


@keras.saving.register_keras_serializable(package="tfquant")
class WeightsConfig(QuantizeConfig):
    """Quantizes every trainable variable of rank 2 or more, for each index of its last axis.

    The file holds integers and turns them back to float when it is loaded.

    Args:
        weights: `QuantSpec` of the weights, or `"float16"`.
    """

    def __init__(self, weights):
        self.weights = QuantSpec.of(weights)

    @property
    def reads_floats(self):
        """True: the layer computes on what other layers computed in float."""
        return True

    def get_weights_and_quantizers(self, layer):
        """Returns the variables with `AbsMax` or `Float16`."""
        make = Float16 if self.weights == "float16" else lambda: AbsMax(self.weights)
        return [(variable, make()) for variable in matrices(layer)]

    def get_output_quantizers(self, layer):
        """Returns nothing: the outputs are float."""
        del layer
        return []

    def get_config(self):
        spec = self.weights
        return {"weights": spec.to_dict() if isinstance(spec, QuantSpec) else spec}


def matrices(layer) -> list:
    """Returns the trainable variables of `layer` that have rank 2 or more."""
    return [v for v in layer.trainable_variables if len(v.shape) > 1]
