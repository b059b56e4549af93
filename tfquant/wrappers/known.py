"""`KnownIntegers`: integer weights that are computed once, where nothing changes them."""

import threading

import tensorflow as tf
from keras import ops

from tfquant.wrappers.lowering import as_integers

_scopes = threading.local()


class KnownIntegers:
    """Inside it, the integers of a kernel are computed when they are first asked for, and kept.

    For a conversion, which reads them once for the file and once for the comparison. No weight may
    change inside it.
    """

    def __init__(self):
        self._found = {}

    def get(self, wrapper, input_scale, compute):
        """Returns what `compute()` returned the first time: `(kernel, scale, bias)`.

        Args:
            wrapper: The `QuantizeWrapper`.
            input_scale: Step of its input, a number, or `None`.
            compute: Function without arguments.
        """
        key = id(wrapper), None if input_scale is None else float(input_scale)
        if key not in self._found:
            kernel, scale, bias = compute()
            self._found[key] = as_integers(ops.convert_to_numpy(kernel)), scale, bias
        kernel, scale, bias = self._found[key]
        return ops.cast(kernel, "float32"), scale, bias

    def __enter__(self):
        self._outer = getattr(_scopes, "current", None)
        _scopes.current = self
        return self

    def __exit__(self, *error):
        _scopes.current = self._outer

    @staticmethod
    def current() -> "KnownIntegers | None":
        """Returns the scope that this thread is in; none while a graph is traced."""
        return getattr(_scopes, "current", None) if tf.executing_eagerly() else None
