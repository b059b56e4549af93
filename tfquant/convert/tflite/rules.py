"""What LiteRT's integer kernels ask of the tensors around an operator: tables.

Source: the TFLite 8-bit quantization specification
(https://ai.google.dev/edge/litert/models/quantization_spec), and for what a kernel takes,
measurement: each row is run by the tests.
"""

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

# The output lies on the grid of the data inputs.
SAME_GRID = frozenset(
    {
        "AVERAGE_POOL_2D",
        "BATCH_TO_SPACE_ND",
        "BROADCAST_TO",
        "CONCATENATION",
        "DEPTH_TO_SPACE",
        "EXPAND_DIMS",
        "GATHER",
        "GATHER_ND",
        "MAXIMUM",
        "MAX_POOL_2D",
        "MINIMUM",
        "MIRROR_PAD",
        "PACK",
        "PAD",
        "REDUCE_MAX",
        "REDUCE_MIN",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "REVERSE_V2",
        "SELECT",
        "SELECT_V2",
        "SLICE",
        "SPACE_TO_BATCH_ND",
        "SPACE_TO_DEPTH",
        "SPLIT",
        "SPLIT_V",
        "SQUEEZE",
        "STRIDED_SLICE",
        "TILE",
        "TRANSPOSE",
        "UNPACK",
    }
)

# Clamps that the converter leaves behind kernels that could apply them. On the grid of the output
# the kernel's own saturation does most of it.
CLAMPS = frozenset({"RELU", "RELU6"})

# The output grid is given, as (low, high) over all integers.
FIXED_RANGE = {
    "L2_NORMALIZATION": (-1.0, 1.0),
    "LOGISTIC": (0.0, 1.0),
    "LOG_SOFTMAX": (-16.0, 0.0),
    "SOFTMAX": (0.0, 1.0),
    "TANH": (-1.0, 1.0),
}

# Kernels that LiteRT has for 8 bits only, or that tfquant computes for 8 bits only (REDUCE_PROD).
ONLY_8_BITS = frozenset({"ELU", "HARD_SWISH", "L2_NORMALIZATION", "LOG_SOFTMAX", "REDUCE_PROD"})

# Kernels with a grid of their own at the output.
OWN_GRID = frozenset(
    {
        "ABS",
        "ADD",
        "BATCH_MATMUL",
        "ELU",
        "EXP",
        "GELU",
        "HARD_SWISH",
        "LEAKY_RELU",
        "LOG",
        "MEAN",
        "MUL",
        "PRELU",
        "REDUCE_PROD",
        "RELU",
        "RELU6",
        "RELU_N1_TO_1",
        "RSQRT",
        "SUB",
        "SUM",
    }
)

# Comparisons, whose output is no number. Kernels compare `round(256 * scale * (q - zero_point))` of
# both operands: right on one grid whose steps keep different integers apart. At 1 LiteRT aborts.
COMPARISONS = frozenset({"EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL"})
COMPARED_STEPS = (2.0**-8, 1.0)

# What a comparison is with its operands exchanged.
EXCHANGED = {
    "GREATER": "LESS",
    "GREATER_EQUAL": "LESS_EQUAL",
    "LESS": "GREATER",
    "LESS_EQUAL": "GREATER_EQUAL",
}

# Kernels that look at a tensor of any type and compute no real values.
ANY_TYPE = frozenset({"ARG_MAX", "ARG_MIN", "RANK", "SHAPE"})

INTEGER = (
    frozenset(KERNELS) | SAME_GRID | frozenset(FIXED_RANGE) | OWN_GRID | COMPARISONS | ANY_TYPE
)

# Kernels that look values up in a table or multiply by fixed-point numbers: their output may
# differ from the simulation's by one step.
TABLE_OR_FIXED_POINT = {
    "ELU": "table",
    "EXP": "table",
    "GELU": "table",
    "L2_NORMALIZATION": "fixed point",
    "LEAKY_RELU": "fixed point",
    "LOG": "table",
    "LOGISTIC": "table",
    "LOG_SOFTMAX": "table",
    "PRELU": "fixed point",
    "RELU": "fixed point",
    "RESIZE_BILINEAR": "fixed point",
    "RSQRT": "fixed point",
    "SOFTMAX": "table",
    "TANH": "table",
}
