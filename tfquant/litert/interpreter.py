"""Running a `.tflite` file on LiteRT's kernels."""

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfquant.litert.flatbuffer import File, Op

NUM_THREADS = 2


def run(
    content: bytes, rows: list[np.ndarray], progress=lambda: None, resolver: str = "AUTO"
) -> list[np.ndarray]:
    """Runs a file row by row.

    Args:
        content: Bytes of the file.
        rows: One array for each input of the file, of the file's dtypes; the first axis counts
            the rows.
        progress: Called after each row.
        resolver: Which of LiteRT's kernels run; see `tfquant.devices.Device`.

    Returns:
        One array for each output, in the file's order.
    """
    interpreter = Interpreter(
        model_content=content,
        num_threads=NUM_THREADS,
        experimental_op_resolver_type=OpResolverType[resolver],
    )
    inputs = interpreter.get_input_details()
    for detail, array in zip(inputs, rows, strict=True):
        shape = (int(detail["shape"][0]) if len(detail["shape"]) else 1, *array.shape[1:])
        if tuple(detail["shape"]) != shape:
            interpreter.resize_tensor_input(detail["index"], shape)
    interpreter.allocate_tensors()
    outputs = [detail["index"] for detail in interpreter.get_output_details()]
    batch = int(interpreter.get_input_details()[0]["shape"][0])
    collected = [[] for _ in outputs]
    for start in range(0, len(rows[0]), batch):
        count = min(batch, len(rows[0]) - start)
        for detail, array in zip(inputs, rows, strict=True):
            part = array[start : start + batch]
            padding = [(0, batch - count)] + [(0, 0)] * (part.ndim - 1)
            interpreter.set_tensor(detail["index"], np.pad(part, padding))
        interpreter.invoke()
        for values, index in zip(collected, outputs, strict=True):
            values.append(rows_of(interpreter.get_tensor(index), batch)[:count].copy())
        progress()
    # Each is given up as it is joined: of inner tensors there are many.
    return [np.concatenate(collected.pop(0)) for _ in outputs]


def rows_of(values, batch):
    """Returns values whose first axis counts the rows: inner tensors may join it with another."""
    values = np.atleast_1d(values)
    if len(values) != batch and len(values) % batch == 0:
        return values.reshape(batch, -1, *values.shape[1:])
    return values


def run_signature(content: bytes, key: str) -> dict[str, np.ndarray]:
    """Runs a signature of a file on numbers drawn at random, always the same.

    Args:
        content: Bytes of the file.
        key: Of the signature.

    Returns:
        Dict from the names of its outputs to their values.
    """
    runner = Interpreter(model_content=content, num_threads=NUM_THREADS).get_signature_runner(key)
    generator, inputs = np.random.default_rng(0), {}
    for name, detail in sorted(runner.get_input_details().items()):
        values, dtype = np.zeros(detail["shape"]), detail["dtype"]
        if np.issubdtype(dtype, np.floating):
            values = generator.normal(size=detail["shape"])
        elif detail["quantization"][0]:
            values = generator.integers(0, 100, detail["shape"])
        inputs[name] = values.astype(dtype)
    return {name: np.array(values) for name, values in runner(**inputs).items()}


def first_refused(file: File, content: bytes, error=None) -> tuple[Op, Exception] | None:
    """Returns the first operator that a runtime does not load or run, and what it says of it.

    Args:
        file: The file.
        content: Its bytes.
        error: Function of a file's bytes that returns what the runtime raises when it runs on
            zeros, or `None`; that of LiteRT is the default.

    Returns:
        `None` if the whole file runs.
    """
    error_of = error or _error
    refused = error_of(content)
    low, high = 0, len(file.ops)  # The first `low` operators run, the first `high` do not.
    while refused is not None and high - low > 1:
        middle = (low + high) // 2
        raised = error_of(file.first_ops(middle))
        if raised is None:
            low = middle
        else:
            high, refused = middle, raised
    return None if refused is None else (file.ops[high - 1], refused)


def _error(content):
    """Returns what LiteRT raises when it loads a file and runs it on zeros."""
    try:
        interpreter = Interpreter(model_content=content, num_threads=NUM_THREADS)
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            zeros = np.zeros(detail["shape"], detail["dtype"])
            interpreter.set_tensor(detail["index"], zeros)
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        return error
    return None


def run_inner(file: File, rows: list[np.ndarray], run=run) -> dict[int, np.ndarray]:
    """Runs a file and returns every computed tensor.

    The inner tensors are outputs of a copy of the file. (Asking LiteRT to preserve all tensors
    would switch to other kernels, which round differently.)

    Args:
        file: The file.
        rows: As for `run`.
        run: Function of a file's bytes and of rows that runs it.

    Returns:
        Dict from tensor index to values; the first axis counts the rows.
    """
    indices = [i for i in file.computed() if i not in file.inputs]
    values = dict(zip(indices, run(file.with_outputs(indices), rows), strict=True))
    values.update(zip(file.inputs, rows, strict=True))
    return values


def to_file_inputs(file: File, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Quantizes real inputs where the file takes integers."""
    return [quantize(file, index, array) for index, array in zip(file.inputs, rows, strict=True)]


def quantize(file: File, index: int, values: np.ndarray) -> np.ndarray:
    """Maps real values to the integers of a tensor of the file (unchanged for a float tensor)."""
    kind = file.type(index)
    if kind not in ("INT8", "UINT8", "INT16") or not file.scale(index).size:
        return values
    info = np.iinfo(kind.lower())
    q = np.rint(values / file.scale(index)[0]) + file.zero_point(index)[0]
    return np.clip(q, info.min, info.max).astype(kind.lower())


def dequantize(file: File, index: int, values: np.ndarray) -> np.ndarray:
    """Maps integers of a tensor of the file to real values (unchanged for a float tensor)."""
    if not file.scale(index).size:
        return values
    q = values.astype(np.float32)
    q -= np.float32(file.zero_point(index)[0])
    q *= file.scale(index)[0]
    return q
