"""Layers that came to Keras later than the oldest Keras that tfquant works with.

Tables and checks name them from here. Where the installed Keras lacks one, a class stands for it of
which no layer is an instance: its rows are there, and nothing ever takes them.
"""

import keras


def _layer(name: str) -> type:
    """Returns Keras's layer of a name, or a class of its own that nobody makes."""
    return getattr(keras.layers, name, None) or type(name, (keras.layers.Layer,), {})


AdaptiveAveragePooling1D = _layer("AdaptiveAveragePooling1D")
AdaptiveAveragePooling2D = _layer("AdaptiveAveragePooling2D")
AdaptiveAveragePooling3D = _layer("AdaptiveAveragePooling3D")
AdaptiveMaxPooling1D = _layer("AdaptiveMaxPooling1D")
AdaptiveMaxPooling2D = _layer("AdaptiveMaxPooling2D")
AdaptiveMaxPooling3D = _layer("AdaptiveMaxPooling3D")
RMSNormalization = _layer("RMSNormalization")
ReversibleEmbedding = _layer("ReversibleEmbedding")
