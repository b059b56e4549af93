"""`ethos-u`: Arm's Ethos-U55 and U65, beside a Cortex-M.

Where `ethos-u-vela` is installed, its compiler says what runs on the NPU, and what it costs.
"""

import csv
import os
import re
import subprocess
import sys
import tempfile

from tfquant.litert.flatbuffer import File
from tfquant.targets.target import USE_W8A8, Proof, Target

ACCELERATOR = "ethos-u55-128"

# Of the compiler's own report, `vela --supported-ops-report`, 5.2.
OPERATORS = frozenset(
    {
        *("ABS", "ADD", "ARG_MAX", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D"),
        *("DEPTHWISE_CONV_2D", "ELU", "EXP", "EXPAND_DIMS", "FULLY_CONNECTED", "GELU"),
        *("HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN"),
        *("MINIMUM", "MIRROR_PAD", "MUL", "NEG", "PACK", "PAD", "PADV2", "PRELU", "QUANTIZE"),
        *("REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "RESHAPE"),
        *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "RSQRT", "SLICE"),
        *("SOFTMAX", "SPLIT", "SPLIT_V", "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB"),
        *("SUM", "TANH", "TILE", "TRANSPOSE", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM"),
        "UNPACK",
    }
)

TABLES = ("EXP", "ELU", "GELU", "LEAKY_RELU", "LOG", "RSQRT", "PRELU")

_REFUSED = re.compile(
    r"Warning \(supported operators\) operator: (\w+), ofm: '(.*)'\n"
    r"Reason: (.*)(?:\n(?!Warning)(.*))?"
)
_FIGURES = (
    ("flash", "off_chip_flash_memory_used", "{:.1f} KiB"),
    ("SRAM", "sram_memory_used", "{:.1f} KiB"),
    ("cycles", "cycles_total", "{:,.0f}"),
)


def prove(content: bytes) -> Proof | None:
    """Has Arm's compiler compile the file; `None` where it is not installed."""
    file = File(content)
    if not ETHOS_U.tool_is_there():
        return None
    if any(file.type(i) == "INT4" for op in file.ops for i in op.inputs):
        return None  # It ends by a signal; the table says why.
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        with open(path, "wb") as written:
            written.write(content)
        program = "import sys; from ethosu.vela.vela import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", program, path, "--output-dir", folder]
        command += ["--accelerator-config", ACCELERATOR]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if run.returncode:
            words = (run.stderr.strip().splitlines() or ["no word"])[-1]
            ended = f"ended by signal {-run.returncode}" if run.returncode < 0 else words
            why = f"Vela does not compile the file: {ended}"
            return Proof("Vela", {0: why}, complete=False)
        figures = _figures(folder)
    by_output = {file.name(op.outputs[0]): op.index for op in reversed(file.ops)}
    refused, complete = {}, True
    for _, output, *reasons in _REFUSED.findall(run.stdout):
        if output in by_output:
            refused[by_output[output]] = "; ".join(_plain(x) for x in reasons if x.strip())
        else:  # A part that Vela made of an operator: the table speaks, too.
            complete = False
    return Proof(f"Vela, for {ACCELERATOR}", refused, figures, complete)


def _plain(reason):
    """Returns a reason without the names of tensors behind it."""
    return reason.partition(" (")[0].rstrip(" .")


def _figures(folder):
    (name,) = [x for x in os.listdir(folder) if x.endswith(".csv")]
    with open(os.path.join(folder, name), newline="") as file:
        (row,) = csv.DictReader(file)
    return {what: form.format(float(row[key])) for what, key, form in _FIGURES}


def wide_tables(file, op):
    """Functions by tables are for 8 bits."""
    if op.name not in TABLES or file.type(op.outputs[0]) != "INT16":
        return None
    return "tensors are INT16, not INT8 or UINT8", USE_W8A8


ETHOS_U = Target(
    "ethos-u",
    "the Ethos-U",
    "Vela 5.2, `vela --supported-ops-report`, for the U55 and the U65",
    operators=OPERATORS,
    activations=("INT8", "UINT8", "INT16"),
    weights=("INT8", "UINT8"),
    elsewhere="it runs on the Cortex-M",
    limits=(wide_tables,),
    remedies={"LOG_SOFTMAX": "softmax in its place"},
    prove=prove,
    package="ethos-u-vela",
    module="ethosu",
)
