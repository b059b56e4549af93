"""`edgetpu`: Coral's Edge TPU."""

import math

from tfquant.targets.target import Target

OPERATORS = frozenset(
    {
        *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D"),
        *("EXPAND_DIMS", "FULLY_CONNECTED", "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM"),
        *("MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PACK", "PAD", "PRELU", "QUANTIZE"),
        *("REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE"),
        *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX"),
        *("SPACE_TO_DEPTH", "SPLIT", "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB"),
        *("SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM"),
    }
)

LONGEST_SOFTMAX = 16_000
BEHIND_THE_FILE = "leave the softmax to the processor, behind the file"


def softmax(file, op):
    """A softmax is over one vector of at most 16,000 values."""
    count = math.prod(file.shape(op.outputs[0]))
    if op.name != "SOFTMAX" or count <= LONGEST_SOFTMAX:
        return None
    return f"it has {count:,} values, and {LONGEST_SOFTMAX:,} are taken", BEHIND_THE_FILE


def deep(file, op):
    """Tensors have at most three dimensions beside the batch and other dimensions of size 1."""
    for index in (*op.inputs, *op.outputs):
        shape = file.shape(index)
        if not file.is_constant(index) and any(size > 1 for size in shape[:-3]):
            return f"a tensor of shape {list(shape)} has more than 3 dimensions", "--file_batch 1"
    return None


EDGETPU = Target(
    "edgetpu",
    "the Edge TPU",
    'Coral, "TensorFlow models on the Edge TPU", its requirements and supported operations',
    operators=OPERATORS,
    activations=("INT8", "UINT8"),
    weights=("INT8", "UINT8"),
    elsewhere="it and all behind it run on the CPU",
    limits=(softmax, deep),
    remedies={
        "GELU": "relu in its place",
        "HARD_SWISH": "relu6 in its place",
        "LEAKY_RELU": "PReLU or relu in its place",
    },
    fixed_batch=True,
)
