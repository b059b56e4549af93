"""`KnownIntegers`: what was computed of weights already, where nothing changes them."""

import tensorflow as tf

from tfquant.layers.scope import Scope


class KnownIntegers(Scope):
    """Inside it, the integers of a kernel that were computed for a file are there for the next.

    For a conversion, which reads them once for the file and once for the comparison. No weight may
    change inside it.
    """

    kind = "integers"

    def __init__(self):
        self._kept, self._folded = {}, {}

    def folded(self, wrapper, compute):
        """Returns `compute(wrapper)`: what the batch norm of a wrapper comes to, computed once."""
        if wrapper not in self._folded:
            self._folded[wrapper] = compute(wrapper)
        return self._folded[wrapper]

    def keep(self, wrapper, input_scale, kernel, scale, bias) -> None:
        """Keeps what `get` is to return.

        Args:
            wrapper: The `QuantizeWrapper`.
            input_scale: Step of its input, a number, or `None`.
            kernel: Array of integers.
            scale: Its steps.
            bias: Its bias.
        """
        self._kept[_key(wrapper, input_scale)] = kernel, scale, bias

    def get(self, wrapper, input_scale):
        """Returns `(kernel, scale, bias)`, the kernel as float32; `None` if they are not there."""
        found = self._kept.get(_key(wrapper, input_scale))
        if found is None:
            return None
        kernel, scale, bias = found
        return kernel.astype("float32"), scale, bias

    @classmethod
    def current(cls) -> "KnownIntegers | None":
        """Returns the scope that this thread is in; none while a graph is traced."""
        return super().current() if tf.executing_eagerly() else None


def _key(wrapper, input_scale):
    return wrapper, None if input_scale is None else float(input_scale)
