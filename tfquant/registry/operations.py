"""Operations of `keras.ops` that no layer stands for: what the device computes them with."""

from keras import activations

from tfquant.configs.elementwise import (
    ClipConfig,
    OutputConfig,
    ReduceConfig,
    ReduceProductConfig,
    SameGridConfig,
    TanhGeluConfig,
)
from tfquant.registry.keras_layers import activation_config, operator_config

# Operations whose output lies on the grid of their inputs.
MOVING = frozenset({"Flip", "GetItem", "Max", "Min", "Repeat", "Reshape", "Roll", "Split", "Stack"})
MOVING |= {"Amax", "Amin", "Take", "Tile", "Tril", "Triu", "Unstack"}

# Functions with a grid of their own. Where they run along another axis the converter moves it.
VECTOR_FUNCTIONS = {"LogSoftmax": activations.log_softmax, "Softmax": activations.softmax}

# The device's operators of functions of one tensor, and of sums over some axes.
FUNCTIONS = {"Abs": "ABS", "Absolute": "ABS", "Exp": "EXP", "Log": "LOG", "Rsqrt": "RSQRT"}
REDUCTIONS = {"Mean": "MEAN", "Prod": "REDUCE_PROD", "Sum": "SUM"}

# All that one operator of the device computes.
KERNELS = frozenset({*MOVING, *VECTOR_FUNCTIONS, *FUNCTIONS, *REDUCTIONS})


def operation_config(operation, scheme, outputs: int, args: tuple, kwargs: dict):
    """Returns the config of an operation of real tensors that no layer stands for.

    Args:
        operation: `keras.Operation`.
        scheme: `Scheme`.
        outputs: Number of its outputs.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of it.
    """
    name = type(operation).__name__
    if name in VECTOR_FUNCTIONS:
        return activation_config(VECTOR_FUNCTIONS[name], scheme)
    if name in MOVING or (name == "Pad" and _pads_zeros(operation, *args, **kwargs)):
        return SameGridConfig()
    if name in REDUCTIONS:
        kind = ReduceProductConfig if name == "Prod" else ReduceConfig
        return operator_config(REDUCTIONS[name], scheme, kind)
    if name == "Gelu":  # Of the approximation: a layer stands for the other.
        return operator_config("GELU", scheme, TanhGeluConfig)
    if name == "Clip":
        return ClipConfig(scheme.activations)
    if name in FUNCTIONS:
        return operator_config(FUNCTIONS[name], scheme)
    return OutputConfig(scheme.activations, outputs)


def _pads_zeros(operation, x, constant_values=None):
    """Whether what is added lies on every grid."""
    del x
    return operation.mode == "constant" and not constant_values
