"""`litert-gpu`: the GPU delegate of LiteRT."""

from tfquant.targets.target import Target

# As its guide lists them; newer releases take more on some phones.
OPERATORS = frozenset(
    {
        *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXP"),
        *("FULLY_CONNECTED", "LOGICAL_AND", "LOGISTIC", "LSTM", "MAXIMUM", "MAX_POOL_2D"),
        *("MINIMUM", "MUL", "PAD", "PRELU", "RELU", "RELU6", "RESHAPE", "RESIZE_BILINEAR"),
        *("SOFTMAX", "STRIDED_SLICE", "SUB", "TRANSPOSE_CONV"),
        # At the edges of a file of integers: it computes in float and takes them in itself.
        *("DEQUANTIZE", "QUANTIZE"),
    }
)

LITERT_GPU = Target(
    "litert-gpu",
    "the GPU delegate",
    'the guide "GPU delegates for LiteRT", its list of operations and "Quantized models"',
    operators=OPERATORS,
    activations=("FLOAT16", "FLOAT32", "INT8", "UINT8"),
    weights=("FLOAT16", "FLOAT32", "INT8", "UINT8"),
    elsewhere="it runs on the CPU, and what goes there and back costs more than it does",
)
