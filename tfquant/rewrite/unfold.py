"""Layers that are whole networks, unfolded into layers that have a kernel each."""

import keras
from keras import layers

from tfquant.registry.elementwise import SameGridConfig
from tfquant.registry.parts import Unmask
from tfquant.rewrite.annotate import QuantizeAnnotate
from tfquant.rewrite.attention import unfold_attention, unfold_einsum
from tfquant.rewrite.graph import tensors
from tfquant.rewrite.recurrent import (
    unfold_bidirectional,
    unfold_recurrent,
    unfold_time_distributed,
)

# Layer type -> function of a layer and a scheme that returns a function of the layer's call
# arguments, or `None` where the layer has settings that cannot be unfolded. That function calls the
# parts on KerasTensors, or returns `None` where the call cannot be unfolded.
UNFOLDED = {
    layers.Bidirectional: unfold_bidirectional,
    layers.EinsumDense: unfold_einsum,
    layers.GRU: unfold_recurrent,
    layers.LSTM: unfold_recurrent,
    layers.RNN: unfold_recurrent,
    layers.SimpleRNN: unfold_recurrent,
    layers.TimeDistributed: unfold_time_distributed,
    layers.MultiHeadAttention: unfold_attention,
    layers.GroupQueryAttention: unfold_attention,
}


# Masks that Keras hands from layer to layer beside the tensors.
_TRAVELLING_MASKS = ("mask", "query_mask", "value_mask", "key_mask")


def unfold(layer, scheme):
    """Unfolds `layer` into layers with a kernel each, all marked as ones to quantize.

    Args:
        layer: Built Keras layer.
        scheme: `Scheme`.

    Returns:
        Function of the arguments of a call of the layer. It returns a functional model of the
        KerasTensors among them, which computes what the layer does, or `None` if this call cannot
        be unfolded. `None` in its place for a layer that cannot be unfolded at all.
    """
    make = UNFOLDED.get(type(layer))
    call = None if make is None else make(layer, scheme)
    if call is None:
        return None

    def build(args, kwargs):
        inputs = {
            id(x): keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in tensors((args, kwargs))
        }
        masked = any(kwargs.get(name) is not None for name in _TRAVELLING_MASKS)
        config = SameGridConfig() if scheme.static else None
        unmask = QuantizeAnnotate(Unmask(name=f"{layer.name}_unmask"), config)

        def value(x):
            x = inputs.get(id(x), x)
            return unmask(x) if masked and _is_sequence(x) else x

        args, kwargs = keras.tree.map_structure(value, (args, kwargs))
        outputs = call(*args, **kwargs)
        return None if outputs is None else keras.Model(list(inputs.values()), outputs)

    return build


def _is_sequence(x):
    return isinstance(x, keras.KerasTensor) and len(x.shape) > 2 and x.dtype != "bool"
