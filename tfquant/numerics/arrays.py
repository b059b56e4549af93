"""Arithmetic of weights: NumPy's where their values are at hand, the backend's in a graph.

TensorFlow takes a tenth of a millisecond for an operation outside of graphs, however small, and a
model has hundreds of weights that dozens of them are needed for. Both are IEEE arithmetic, rounded
operation by operation: the results are the same to the last bit.
"""

import numpy as np
import tensorflow as tf
from keras import ops


class Arrays:
    """What `keras.ops` has, on arrays of NumPy. Final; `arithmetic` returns it.

    NumPy's own functions, and those that it has under no such name.
    """

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def cast(x, dtype):
        """Returns `x` as that dtype."""
        return np.asarray(x).astype(dtype, copy=False)

    @staticmethod
    def stop_gradient(x):
        """Returns `x`."""
        return x

    @staticmethod
    def view(x, dtype):
        """Returns the bits of `x` as that dtype."""
        return x.view(dtype)


ARRAYS = Arrays()

# Types of tensors whose memory NumPy reads as it is.
_SHARED = (tf.float32, tf.float64, tf.bool, tf.int8, tf.uint8, tf.int16, tf.int32, tf.int64)


def arithmetic(*values):
    """Returns what computes with `values`: `ARRAYS` if none is a tensor, else `keras.ops`."""
    at_hand = all(isinstance(x, (np.ndarray, np.generic, int, float)) for x in values)
    return ARRAYS if at_hand else ops


def at_hand(variable):
    """Returns the value of a variable: an array outside of graphs, else a tensor.

    Arrays have no gradient. What computes with them is not to be differentiated.
    """
    return array_of(variable.value)


def array_of(x):
    """Returns a tensor's value as an array outside of graphs; else `x` as it is.

    The array may be the tensor's own memory, and is not to be written to.
    """
    if isinstance(x, (np.ndarray, np.generic, int, float)) or not tf.executing_eagerly():
        return x
    if tf.is_tensor(x) and x.dtype in _SHARED and not isinstance(x, tf.Variable):
        return np.asarray(memoryview(x))
    return x.numpy() if hasattr(x, "numpy") else x
