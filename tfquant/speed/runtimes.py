"""Files as their runtimes run them, on inputs drawn at random.

Imports nothing of tfquant, so that a process which does not either can tell what memory they take.
"""

import os

import numpy as np


class LiteRtFile:
    """A `.tflite` file in LiteRT, by its default kernels.

    Args:
        path: The file.
        threads: How many threads a kernel may take.
    """

    runtime = "LiteRT"

    def __init__(self, path: str, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=path, num_threads=threads)
        self._interpreter.allocate_tensors()
        rng = np.random.default_rng(0)
        for detail in self._interpreter.get_input_details():
            values = _drawn(rng, detail["shape"], np.dtype(detail["dtype"]))
            self._interpreter.set_tensor(detail["index"], values)

    def __call__(self) -> None:
        """Runs it once."""
        self._interpreter.invoke()


class OnnxFile:
    """An `.onnx` file in ONNX Runtime on the CPU, likewise; a free size is taken for 1."""

    runtime = "ONNX Runtime"

    def __init__(self, path: str, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        rng = np.random.default_rng(0)
        self._rows = {
            x.name: _drawn(rng, [n if isinstance(n, int) else 1 for n in x.shape], _dtype(x.type))
            for x in self._session.get_inputs()
        }

    def __call__(self) -> None:
        """Runs it once."""
        self._session.run(None, self._rows)


RUNTIMES = {".tflite": LiteRtFile, ".onnx": OnnxFile}


def open_file(path, threads: int):
    """Returns a file as its runtime runs it; raises what the runtime does."""
    path = os.fspath(path)
    return RUNTIMES[os.path.splitext(path)[1].lower()](path, threads)


def _drawn(rng, shape, dtype):
    """Returns random values of a type: of wide integers, which may be ids, zeros."""
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return np.zeros(shape, dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def _dtype(kind):
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64", "string": "object"}.get(name, name))
