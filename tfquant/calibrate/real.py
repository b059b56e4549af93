"""`RealCalls`: linear layers in real arithmetic, their kernels quantized and folded once."""

from tfquant.configs.linear import LinearConfig


class RealCalls:
    """Computes linear layers as the device does, but for single steps, and several times faster.

    What it holds of a layer is that of the first call; `rescale` keeps up with corrections.

    Args:
        held: Folded kernels and biases, by the `id` of a wrapper.
    """

    def __init__(self, held=()):
        self._held = dict(held)

    def copy(self) -> "RealCalls":
        """Returns another that holds the same."""
        return RealCalls(self._held)

    def __call__(self, wrapper, args, kwargs):
        """Returns the output of a layer, `None` for one that is not linear."""
        config = wrapper.quantize_config
        if not isinstance(config, LinearConfig) or config.dynamic:
            return None
        if not wrapper.weight_quantizers:
            return config.real_call(wrapper, args, kwargs)
        if id(wrapper) not in self._held:
            self._held[id(wrapper)] = config.real_weights(wrapper)
        return config.real_call(wrapper, args, kwargs, self._held[id(wrapper)])

    def rescale(self, wrapper, gain, shift) -> None:
        """Makes a layer's output `gain * y + shift`; a gain of `None` is 1."""
        if id(wrapper) not in self._held:
            return
        kernel, bias = self._held[id(wrapper)]
        if gain is not None:
            kernel = kernel * wrapper.quantize_config.by_channel(wrapper, gain)
            bias = bias * gain
        self._held[id(wrapper)] = kernel, bias + shift
