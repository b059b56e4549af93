"""Layers that are whole networks, unfolded into layers that have a kernel each."""

import inspect
import math

import keras
from keras import activations, layers, ops

from tfquant.configs.elementwise import SameGridConfig
from tfquant.configs.parts import MatMulConfig
from tfquant.graph.graph import put_in_place, real, tensors
from tfquant.layers import known
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.layers.parts import MaskedProduct, MatMul, Unmask
from tfquant.pieces.affine import channel_affine, hard_sigmoid
from tfquant.pieces.parts import Parts
from tfquant.reading.own import is_composite
from tfquant.registry.keras_layers import activation_config
from tfquant.unfold.attention import unfold_attention, unfold_softmax
from tfquant.unfold.composite import is_worthwhile, unfold_composite
from tfquant.unfold.einsum import unfold_einsum
from tfquant.unfold.layout import (
    POOLING_3D,
    is_channels_first,
    unfold_batch_norm,
    unfold_channels_first,
    unfold_pooling_3d,
)
from tfquant.unfold.norms import unfold_group_norm, unfold_layer_norm, unfold_rms_norm
from tfquant.unfold.operations import has_kernel, unfold_operation
from tfquant.unfold.preprocess import (
    unfold_category_encoding,
    unfold_normalization,
    unfold_rescaling,
)
from tfquant.unroll.recurrent import unfold_bidirectional, unfold_recurrent, unfold_time_distributed
from tfquant.wrappers import QuantizeAnnotate


def unfold_merge(layer, scheme):
    """Merges three or more tensors in turn, as the device does; see `unfold`."""
    del scheme

    def call(inputs, masks=None):
        if (len(inputs) < 3 and masks is None) or len({len(x.shape) for x in inputs}) > 1:
            return None
        if masks is not None:
            return MaskedProduct(name=layer.name)(inputs)
        y = inputs[0]
        for number, x in enumerate(inputs[1:], 1):
            name = layer.name if number == len(inputs) - 1 else f"{layer.name}_{number}"
            y = QuantizeAnnotate(type(layer)(name=name))([y, x])
        return y

    return call


def unfold_average(layer, scheme):
    """Averages as a sum and a product with a constant; see `unfold`."""

    def call(inputs):
        if len({len(x.shape) for x in inputs}) > 1:
            return None
        inputs = [x if real([x]) else keras.ops.cast(x, "float32") for x in inputs]
        y = QuantizeAnnotate(layers.Add(name=f"{layer.name}_sum"))(inputs)
        return channel_affine(y, 1.0 / len(inputs), 0.0, False, layer.name)

    return call if scheme.static else None


def unfold_dot(layer, scheme):
    """Multiplies two sequences of vectors as matrices; see `unfold`."""
    config = MatMulConfig(scheme.activations) if scheme.static else None
    axes = (layer.axes,) * 2 if isinstance(layer.axes, int) else tuple(layer.axes)

    def call(inputs):
        (a, b), parts = inputs, Parts(layer.name, scheme)
        if 0 in axes or len(real(inputs)) < 2:
            return None
        if layer.normalize:
            sides = zip(inputs, axes, ("left", "right"), strict=True)
            if any(axis % len(x.shape) != len(x.shape) - 1 for x, axis, _ in sides):
                return None
            a = parts.make("left_unit", layers.UnitNormalization)(a)
            b = parts.make("right_unit", layers.UnitNormalization)(b)
        if len(a.shape) == len(b.shape) == 2:
            row = parts.make("row", layers.Reshape, (1, a.shape[1]))(a)
            column = parts.make("column", layers.Reshape, (b.shape[1], 1))(b)
            y = QuantizeAnnotate(MatMul(name=layer.name), config)(row, column)
            return parts.make("sum", layers.Reshape, (1,))(y)
        if len(a.shape) != 3 or len(b.shape) != 3:
            return None
        a = parts.make("left", layers.Permute, (2, 1))(a) if axes[0] % 3 == 1 else a
        b = parts.make("right", layers.Permute, (2, 1))(b) if axes[1] % 3 == 2 else b
        return QuantizeAnnotate(MatMul(name=layer.name), config)(a, b)

    return call


def unfold_unit_normalization(layer, scheme):
    """Moves its axes to the end, as one, which the layer with a kernel takes; see `unfold`."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]

    def call(x):
        rank = len(x.shape)
        places = [axis % rank for axis in axes]
        norm = QuantizeAnnotate(layers.UnitNormalization(name=layer.name))
        if list(axes) == [rank - 1]:
            return norm(x)
        others = [axis for axis in range(1, rank) if axis not in places]
        sizes = [x.shape[axis] for axis in places]
        if 0 in places or places == [rank - 1] or (len(places) > 1 and None in x.shape[1:]):
            return None
        order, parts = [*others, *places], Parts(layer.name, scheme)
        moved = order != list(range(1, rank))
        y = parts.make("axis_last", layers.Permute, order)(x) if moved else x
        if len(places) > 1:
            shape = y.shape[1:]
            kept = [x.shape[axis] for axis in others]
            y = parts.make("axes_joined", layers.Reshape, (*kept, math.prod(sizes)))(y)
        y = norm(y)
        if len(places) > 1:
            y = parts.make("axes_parted", layers.Reshape, shape)(y)
        back = [1 + order.index(axis) for axis in range(1, rank)]
        return parts.make("axis_back", layers.Permute, back)(y) if moved else y

    return call if scheme.static else None


# Activations that are operations of several kernels.
_SEVERAL = {
    activations.celu: ops.celu,
    activations.glu: ops.glu,
    activations.hard_tanh: ops.hard_tanh,
    activations.tanh_shrink: ops.tanh_shrink,
}


def unfold_activation(layer, scheme):
    """Takes apart a hard sigmoid, and functions of the user that consist of several; see `unfold`.

    hard_sigmoid(x) = relu6(x + 3) / 6
    """
    if not scheme.static or activation_config(layer.activation, scheme) is not None:
        return None
    if layer.activation is activations.hard_sigmoid:
        return lambda x: hard_sigmoid(x, layer.name)

    function = layer.activation
    if function in _SEVERAL:
        return _SEVERAL[function]
    if isinstance(function, layers.Layer):
        if function.weights or not function.built:
            return None
        return lambda x: QuantizeAnnotate(copy_layer(function, name=layer.name))(x)
    if getattr(function, "__module__", "").startswith("keras."):
        return None  # One operator, which has no kernel here.

    def call(x):
        y = function(x)
        model = keras.Model(x, y) if isinstance(y, keras.KerasTensor) else None
        return None if model is None or not all(map(has_kernel, model.operations)) else y

    return call


def unfold_elu(layer, scheme):
    """Scales the half of an ELU that has a kernel, of `alpha` 1; see `unfold`.

    elu(x, alpha) = alpha * elu(x) + (1 - alpha) * relu(x)
    """
    if layer.alpha == 1 or not scheme.static:
        return None

    def call(x):
        parts = Parts(layer.name, scheme)
        scaled, rest = (
            channel_affine(parts.make(name, make)(x), factor, 0.0, False, f"{layer.name}_{end}")
            for name, make, factor, end in (
                ("unit", layers.ELU, layer.alpha, "scaled"),
                ("relu", layers.ReLU, 1 - layer.alpha, "rest"),
            )
        )
        if scaled is None:
            return None
        return QuantizeAnnotate(layers.Add(name=layer.name))([scaled, rest])

    return call


def unfold_relu(layer, scheme):
    """Takes apart a ReLU with a threshold, a slope or a bound of its own; see `unfold`.

    relu(x) = min(x if x > threshold else 0, max_value) - slope * max(threshold - x, 0)
    """
    slope, threshold, most = layer.negative_slope, layer.threshold, layer.max_value
    if not scheme.static or not (threshold or slope or most not in (None, 6)):
        return None
    if slope and not threshold and most is None:
        return lambda x: QuantizeAnnotate(layers.LeakyReLU(slope, name=layer.name))(x)

    def call(x):
        y = ops.where(x > threshold, x, 0.0) if threshold else x
        y = ops.relu(y) if most is None and not threshold else y
        y = y if most is None else ops.clip(y, 0.0, most)
        return y - slope * ops.relu(threshold - x) if slope else y

    return call


def unfold_pipeline(layer, scheme):
    """Calls the layers of a `Pipeline` one after the other; see `unfold`."""
    del scheme

    def call(x, training=None, mask=None):
        del training
        if mask is not None:
            return None
        for inner in layer.layers:
            x = QuantizeAnnotate(copy_layer(inner, name=f"{layer.name}_{inner.name}"))(x)
        return x

    return None if any(inner.weights for inner in layer.layers) else call


def unfold_spectral(layer, scheme):
    """Calls the layer inside a `SpectralNormalization`; see `unfold`.

    Its weights are those that the last training step left normalized. Training with quantization
    does not normalize them again.
    """
    del scheme

    def call(x, training=None):
        del training
        copy = copy_layer(layer.layer, name=f"{layer.name}_{layer.layer.name}")
        y = QuantizeAnnotate(copy)(x)
        transfer_weights(layer.layer, copy)
        return y

    return call


# Layer type -> function of a layer and a scheme that returns a function of the layer's call
# arguments, or `None` where the layer has settings that cannot be unfolded. That function calls the
# parts on KerasTensors, or returns `None` where the call cannot be unfolded.
UNFOLDED = {
    **dict.fromkeys(POOLING_3D, unfold_pooling_3d),
    layers.Activation: unfold_activation,
    layers.Add: unfold_merge,
    layers.Average: unfold_average,
    layers.BatchNormalization: unfold_batch_norm,
    layers.Bidirectional: unfold_bidirectional,
    layers.CategoryEncoding: unfold_category_encoding,
    layers.ConvLSTM1D: unfold_recurrent,
    layers.ConvLSTM2D: unfold_recurrent,
    layers.Dot: unfold_dot,
    layers.ELU: unfold_elu,
    layers.EinsumDense: unfold_einsum,
    layers.GRU: unfold_recurrent,
    layers.GroupQueryAttention: unfold_attention,
    layers.GroupNormalization: unfold_group_norm,
    layers.LSTM: unfold_recurrent,
    layers.LayerNormalization: unfold_layer_norm,
    layers.Maximum: unfold_merge,
    layers.Minimum: unfold_merge,
    layers.MultiHeadAttention: unfold_attention,
    layers.Multiply: unfold_merge,
    layers.Normalization: unfold_normalization,
    layers.Pipeline: unfold_pipeline,
    known.RMSNormalization: unfold_rms_norm,
    layers.RNN: unfold_recurrent,
    layers.ReLU: unfold_relu,
    layers.Rescaling: unfold_rescaling,
    layers.SimpleRNN: unfold_recurrent,
    layers.Softmax: unfold_softmax,
    layers.SpectralNormalization: unfold_spectral,
    layers.TimeDistributed: unfold_time_distributed,
    layers.UnitNormalization: unfold_unit_normalization,
}


def becomes_others(layer) -> bool:
    """Whether `layer`, no composite one, may be unfolded."""
    known = type(layer) in UNFOLDED or not isinstance(layer, keras.layers.Layer)
    return known or is_channels_first(layer)


# Masks that Keras hands from layer to layer beside the tensors.
_TRAVELLING_MASKS = ("mask", "query_mask", "value_mask", "key_mask")


def unfold(layer, scheme):
    """Unfolds `layer` into layers with a kernel each, all marked as ones to quantize.

    Args:
        layer: Built Keras layer, or `keras.Operation`.
        scheme: `Scheme`.

    Returns:
        Function of the arguments of a call of the layer. It returns a functional model of the
        KerasTensors among them, which computes what the layer does, or `None` if this call cannot
        be unfolded. `None` in its place for a layer that cannot be unfolded at all.
    """
    make = UNFOLDED.get(type(layer))
    if not isinstance(layer, keras.layers.Layer):
        make = unfold_operation
    elif is_composite(layer):
        make = unfold_composite
    elif is_channels_first(layer):
        make = unfold_channels_first
    call = None if make is None else make(layer, scheme)
    if call is None:
        return None

    def build(args, kwargs):
        inputs = {
            x: keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in tensors((args, kwargs))
        }
        masked = any(kwargs.get(name) is not None for name in _TRAVELLING_MASKS)
        config = SameGridConfig() if scheme.static else None
        unmask = QuantizeAnnotate(Unmask(name=f"{layer.name}_unmask"), config)

        args, kwargs = put_in_place((args, kwargs), inputs)
        if "training" not in inspect.signature(call).parameters:
            kwargs.pop("training", None)  # All of this is inference.
        if masked:
            unmasked = lambda x: unmask(x) if _is_sequence(x) else x  # noqa: E731
            args, kwargs = keras.tree.map_structure(unmasked, (args, kwargs))
        outputs = call(*args, **kwargs)
        model = None if outputs is None else keras.Model(list(inputs.values()), outputs)
        whole = model is None or (is_composite(layer) and not is_worthwhile(model))
        return None if whole else model

    return build


def _is_sequence(x):
    return isinstance(x, keras.KerasTensor) and len(x.shape) > 2 and x.dtype != "bool"
