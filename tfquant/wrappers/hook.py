"""`CallHook`: looking over the shoulder of every wrapper."""

from tfquant.layers.scope import Scope


class CallHook(Scope):
    """Inside it, `function` sees each call of a `QuantizeWrapper` at inference before it computes.

    Args:
        function: Function of the wrapper, the positional and the keyword arguments of the call. It
            may return real outputs, which are then bounded and rounded as the config's `real_call`
            would be: nobody computes them again, nor what a device does.
    """

    kind = "hook"

    def __init__(self, function):
        self.function = function
