"""Which layer is quantized how, under which scheme: tables."""

from tfquant.registry import keras_layers
from tfquant.registry.recipe import Recipe
from tfquant.registry.registry import KERAS_LAYERS, QuantizeRegistry
from tfquant.registry.schemes import SCHEMES, Scheme

keras_layers.register_all(KERAS_LAYERS)

__all__ = ["KERAS_LAYERS", "SCHEMES", "QuantizeRegistry", "Recipe", "Scheme"]
