"""`CallHook`: looking over the shoulder of every wrapper."""

import threading

_hooks = threading.local()


class CallHook:
    """Inside it, `function` sees each call of a `QuantizeWrapper` at inference before it computes.

    Args:
        function: Function of the wrapper, the positional and the keyword arguments of the call. It
            may return real outputs, which are then bounded and rounded as the config's `real_call`
            would be: nobody computes them again, nor what a device does.
    """

    def __init__(self, function):
        self.function = function

    def __enter__(self):
        self._outer = self.current()
        _hooks.current = self
        return self

    def __exit__(self, *error):
        _hooks.current = self._outer

    @staticmethod
    def current() -> "CallHook | None":
        """Returns the hook that this thread is in."""
        return getattr(_hooks, "current", None)
