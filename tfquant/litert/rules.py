"""What LiteRT's integer kernels ask of the tensors around an operator, whatever the device: tables.

Source: the TFLite 8-bit quantization specification
(https://ai.google.dev/edge/litert/models/quantization_spec), and for what a kernel takes,
measurement: each row is run by the tests.
"""

from tfquant.devices.litert import COMPARED_STEPS, COMPARISONS

# Axis of the weights that numbers the output channels, and which input they are.
KERNELS = {
    "CONV_2D": 0,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 0,
    "TRANSPOSE_CONV": 0,
}

# Inputs of a kernel: (data, weights, bias).
KERNEL_INPUTS = {"TRANSPOSE_CONV": (2, 1, 3)}
DEFAULT_KERNEL_INPUTS = (0, 1, 2)

# Clamps that the converter leaves behind kernels that could apply them. On the grid of the output
# the kernel's own saturation does most of it.
CLAMPS = frozenset({"RELU", "RELU6"})

# What a comparison is with its operands exchanged.
EXCHANGED = {
    "GREATER": "LESS",
    "GREATER_EQUAL": "LESS_EQUAL",
    "LESS": "GREATER",
    "LESS_EQUAL": "GREATER_EQUAL",
}

__all__ = ["COMPARED_STEPS", "COMPARISONS"]
