"""`tflm`: TensorFlow Lite Micro.

Where `tflite-micro` is installed, its interpreter runs the file and says what memory that takes.
"""

from tfquant.devices.tflm import NAME
from tfquant.devices.tflm import TFLM as DEVICE
from tfquant.litert import micro
from tfquant.litert.flatbuffer import File, kernel_inputs
from tfquant.litert.interpreter import first_refused
from tfquant.targets.target import (
    ANOTHER_LAYER,
    REAL_TYPES,
    USE_W8A8,
    Proof,
    Target,
    weights_of,
)

# Of `micro_mutable_op_resolver.h`, 2026-10.
OPERATORS = frozenset(
    {
        *("ABS", "ADD", "ADD_N", "ARG_MAX", "ARG_MIN", "ASSIGN_VARIABLE", "AVERAGE_POOL_2D"),
        *("BATCH_MATMUL", "BATCH_TO_SPACE_ND", "BROADCAST_ARGS", "BROADCAST_TO", "CALL_ONCE"),
        *("CAST", "CEIL", "CONCATENATION", "CONV_2D", "COS", "CUMSUM", "DEPTHWISE_CONV_2D"),
        *("DEPTH_TO_SPACE", "DEQUANTIZE", "DIV", "DYNAMIC_UPDATE_SLICE", "ELU"),
        *("EMBEDDING_LOOKUP", "EQUAL", "EXP", "EXPAND_DIMS", "FILL", "FLOOR", "FLOOR_DIV"),
        *("FLOOR_MOD", "FULLY_CONNECTED", "GATHER", "GATHER_ND", "GREATER", "GREATER_EQUAL"),
        *("HARD_SWISH", "IF", "L2_NORMALIZATION", "L2_POOL_2D", "LEAKY_RELU", "LESS"),
        *("LESS_EQUAL", "LOG", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR", "LOGISTIC"),
        *("LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL"),
        *("NEG", "NOT_EQUAL", "PACK", "PAD", "PADV2", "PRELU", "QUANTIZE", "READ_VARIABLE"),
        *("REDUCE_ALL", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESHAPE"),
        *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "ROUND", "RSQRT"),
        *("SELECT_V2", "SHAPE", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_BATCH_ND"),
        *("SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQRT", "SQUARE", "SQUARED_DIFFERENCE"),
        *("SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "SVDF", "TANH", "TRANSPOSE"),
        *("TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNPACK", "VAR_HANDLE", "WHILE"),
        "ZEROS_LIKE",
    }
)

_BITS = {"INT8": 8, "INT16": 16}


def integer_kernel(file, op):
    """What the device's table says of an operator on integers."""
    bits = _BITS.get(file.type(op.outputs[0])) if op.outputs else None
    if bits is None or not (op.name in DEVICE.operators or op.name in DEVICE.refusals):
        return None
    why = DEVICE.why_not(op.name, bits)
    return (why, USE_W8A8 if bits > 8 else ANOTHER_LAYER) if why else None


def hybrid(file, op):
    """Real activations are not multiplied by integers."""
    weights = weights_of(file, op)
    if weights is None or file.type(weights) == "FLOAT32":
        return None
    data, *_ = kernel_inputs(op)
    mixed = file.type(data) == "FLOAT32"
    return ("it would quantize what it reads when it runs", USE_W8A8) if mixed else None


def narrow_weights(file, op):
    """Dense layers have one step for all weights of 4 bits."""
    weights = weights_of(file, op)
    if op.name != "FULLY_CONNECTED" or weights is None or file.type(weights) != "INT4":
        return None
    if file.scale(weights).size == 1:
        return None
    return "weights of 4 bits have a step for each channel", "--device tflm when quantizing"


def prove(content: bytes) -> Proof | None:
    """Has its interpreter run the file; `None` where it is not installed."""
    if not micro.is_there():
        return None
    refused = first_refused(File(content), content, micro.error_alone)
    taken = {} if refused else {"arena": f"{micro.arena(content):,} bytes on 64 bits"}
    return Proof.by_running(f"{NAME}'s interpreter", refused, taken)


TFLM = Target(
    "tflm",
    NAME,
    "`micro_mutable_op_resolver.h` of 2026-10, and the table that `device='tflm'` simulates",
    operators=OPERATORS,
    activations=REAL_TYPES,
    weights=REAL_TYPES,
    elsewhere="the file does not run",
    limits=(narrow_weights, hybrid, integer_kernel),
    remedies={"GELU": "relu or hard_silu in its place, or --device tflm when quantizing"},
    prove=prove,
    package="tflite-micro",
    module="tflite_micro",
)
