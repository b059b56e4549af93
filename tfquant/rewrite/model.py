"""`QuantizedModel`: what `quantize_model` returns."""

import keras

from tfquant.registry.recipe import Recipe


@keras.saving.register_keras_serializable(package="tfquant")
class QuantizedModel(keras.Model):
    """A functional model that knows how it was quantized.

    Args:
        *args: As of `keras.Model`: inputs and outputs. (A constructor of this form makes Keras of
            any version save the layers.)
        recipe: `Recipe`, or what its `get_config` returns.
        **kwargs: As of `keras.Model`.

    Attributes:
        lesson: Function from the loss, the inputs and the outputs of a training step to the loss
            that is trained by, while `finetune` runs, or `None`. It shapes the graph.
    """

    def __init__(self, *args, recipe, **kwargs):
        super().__init__(*args, **kwargs)
        self.recipe = recipe if isinstance(recipe, Recipe) else Recipe.from_config(recipe)
        self.lesson = None

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns the loss that the model was compiled with, in training with its `lesson`."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss if self.lesson is None or not training else self.lesson(loss, x, y_pred)

    def get_config(self):
        return {**super().get_config(), "recipe": self.recipe.get_config()}
