"""`QuantizedModel`: what `quantize_model` returns."""

import keras

from tfquant.registry.recipe import Recipe


@keras.saving.register_keras_serializable(package="tfquant")
class QuantizedModel(keras.Model):
    """A functional model that knows how it was quantized.

    Args:
        inputs: As of `keras.Model`.
        outputs: Likewise.
        name: Likewise.
        recipe: `Recipe`, or what its `get_config` returns.
        **kwargs: As of `keras.Model`.
    """

    def __init__(self, inputs, outputs, name=None, *, recipe, **kwargs):
        super().__init__(inputs, outputs, name=name, **kwargs)
        self.recipe = recipe if isinstance(recipe, Recipe) else Recipe.from_config(recipe)

    def get_config(self):
        return {**super().get_config(), "recipe": self.recipe.get_config()}
