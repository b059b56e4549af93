"""What LiteRT's integer kernels ask of the tensors around an operator: tables.

Source: the TFLite 8-bit quantization specification
(https://ai.google.dev/edge/litert/models/quantization_spec), and for what a kernel takes,
measurement: each row is run by the tests.
"""

from tfquant.devices import INPUTS
from tfquant.devices.litert import COMPARED_STEPS, COMPARISONS, LITERT

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

# What LiteRT's kernels compute is the same on every device that runs a `.tflite` file, but for the
# last rounding.
OPERATORS = LITERT.operators

# The output lies on the grid of the data inputs.
SAME_GRID = frozenset(name for name, row in OPERATORS.items() if row.grid == INPUTS)

# Clamps that the converter leaves behind kernels that could apply them. On the grid of the output
# the kernel's own saturation does most of it.
CLAMPS = frozenset({"RELU", "RELU6"})

# The output grid is given, as (low, high) over all integers.
FIXED_RANGE = {name: row.grid for name, row in OPERATORS.items() if isinstance(row.grid, tuple)}

# Kernels that LiteRT has for 8 bits only, or that tfquant computes for 8 bits only (REDUCE_PROD).
ONLY_8_BITS = frozenset(name for name, row in OPERATORS.items() if 16 not in row.num_bits)

# What a comparison is with its operands exchanged.
EXCHANGED = {
    "GREATER": "LESS",
    "GREATER_EQUAL": "LESS_EQUAL",
    "LESS": "GREATER",
    "LESS_EQUAL": "GREATER_EQUAL",
}

INTEGER = frozenset(OPERATORS)

__all__ = ["COMPARED_STEPS", "COMPARISONS", "LITERT"]
