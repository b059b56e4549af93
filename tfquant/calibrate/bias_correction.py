"""Bias correction: quantization moves the mean of a channel, and its bias can move it back."""

from keras import ops, tree

from tfquant.quantizers import RecordingScope
from tfquant.registry import LinearConfig
from tfquant.wrappers import CallHook


def correct_biases(model, arrays) -> None:
    """Adds to each channel's bias what quantization took from the channel's mean.

        bias += mean(float output) - mean(output of quantized weights on quantized inputs)

    Layers are corrected in the order in which they run, each on inputs that the corrected layers
    before it computed. Rounding weights to few bits shifts means more than anything else, and the
    shifts add up along a network (Nagel et al. 2019, arXiv:1906.04721, section 4.2, measured on
    data instead of derived from batch norms).

    Args:
        model: Calibrated model. A layer that is called in several places, or that has neither bias
            nor batch norm, stays as it is.
        arrays: Inputs of the model, a list.
    """
    inputs = tree.pack_sequence_as(model.input, arrays)
    float_means = {}

    def note(wrapper, args, kwargs):
        if not _is_correctable(wrapper):
            return None
        y = wrapper.quantize_config.real_call(wrapper, args, kwargs)
        float_means[id(wrapper)] = _means(y)
        return y

    def correct(wrapper, args, kwargs):
        if id(wrapper) not in float_means:
            return None
        y = wrapper.quantize_config.real_call(wrapper, args, kwargs)
        shift = float_means[id(wrapper)] - _means(y)
        if wrapper.quantize_config.shift_bias(wrapper, shift):
            y = y + ops.cast(shift, y.dtype)
        return y

    with RecordingScope(quantize_weights=False), CallHook(note):
        model(inputs, training=False)
    with CallHook(correct):
        model(inputs, training=False)


def _is_correctable(wrapper):
    config = wrapper.quantize_config
    return isinstance(config, LinearConfig) and len(wrapper.call_sites) == 1


def _means(y):
    """Returns the mean of each channel."""
    return ops.mean(ops.cast(y, "float32"), axis=tuple(range(len(y.shape) - 1)))
