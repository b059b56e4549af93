"""ONNX Runtime: sessions, and what its optimised graph consists of."""

import collections
import os
import tempfile

from tfquant.nodes.extra import load

# Operators of integers: of the standard and of ONNX Runtime's own.
INTEGER = ("QLinear", "QGemm", "QAttention", "MatMulNBits", "MatMulInteger", "ConvInteger")
INTEGER += ("DynamicQuantizeMatMul",)

# Operators that move values, or find shapes, whatever their type.
MOVING = frozenset(
    {
        "Cast",
        "Clip",
        "Concat",
        "DequantizeLinear",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "QuantizeLinear",
        "ReorderInput",
        "ReorderOutput",
        "Reshape",
        "Resize",
        "Shape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)

# Settings of a session that computes what the file says, and what happens without each.
EXACTLY = {
    # On x86-64 without VNNI sums of two products leave 16 bits, where weights are signed.
    "session.x64quantprecision": "1",
    # MatMulNBits rounds real activations to 8 bits; so it computes with them as they are.
    "session.qdq_matmulnbits_accuracy_level": "1",
}


class Session:
    """A file as ONNX Runtime runs it on this processor.

    Args:
        content: Bytes of the file.
        without: Which of `EXACTLY` to leave out.

    Attributes:
        optimized: `onnx.GraphProto` of what it runs.

    Raises:
        RuntimeError: If ONNX Runtime does not run it.
    """

    def __init__(self, content: bytes, without: str = ""):
        onnx, runtime = load()
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        for setting, value in EXACTLY.items():
            if setting != without:
                options.add_session_config_entry(setting, value)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "optimized.onnx")
            options.optimized_model_filepath = path
            providers = ["CPUExecutionProvider"]
            try:
                self._session = runtime.InferenceSession(content, options, providers=providers)
            except Exception as error:  # Its own exceptions have no common class.
                raise RuntimeError(_refused(error)) from error
            self.optimized = onnx.load(path, load_external_data=False).graph

    def __call__(self, rows: dict) -> list:
        """Returns the outputs for arrays by the names of the inputs."""
        try:
            return self._session.run(None, rows)
        except Exception as error:
            raise RuntimeError(_refused(error)) from error

    @property
    def counts(self) -> dict[str, int]:
        """How often each operator of integers occurs, and each that computes in float."""
        return dict(collections.Counter(node.op_type for node in self.optimized.node))


def _refused(error):
    words = " ".join(str(error).split())
    return (
        "ONNX Runtime does not run the file, and nothing was written. Please report the model. "
        f"ONNX Runtime says: {words}"
    )


def is_integer(operator: str) -> bool:
    """Whether an operator of the optimised graph multiplies or adds integers."""
    return operator.startswith(INTEGER)


def computes(operator: str) -> bool:
    """Whether an operator of the optimised graph computes real values in float."""
    return operator not in MOVING and operator != "Constant" and not is_integer(operator)
