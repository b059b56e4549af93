"""`run`: what a `.tflite` file computes of real numbers."""

import os

import numpy as np

from tfquant.litert import interpreter
from tfquant.litert.inspect import checked_file, damage_named


def run(path, data):
    """Runs a file on LiteRT, with real numbers at both ends.

        q = clip(round(x / scale) + zero_point)
        y = scale * (q - zero_point)

    Args:
        path: The `.tflite` file; it may come from any converter.
        data: Array of rows, for a file of one input; else a list of arrays in the order of the
            inputs, or a dict from the names of the file's signature.

    Returns:
        Array of the output's real values, one row for each of `data`. Of several outputs a dict
        from their names in the signature, or a list where the file has no signature.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no `.tflite` file, or data do not fit its inputs or are not finite.

    Example:

    ```python
    scores = tfq.run("digits.tflite", images)
    ```
    """
    path = os.fspath(path)
    with open(path, "rb") as opened:
        content = opened.read()
    file = checked_file(content, path)
    with damage_named(path, ours=ValueError):
        names = [_names(file, kind) for kind in ("inputs", "outputs")]
        rows = _rows(file, data, names[0])
    with damage_named(path):
        received = interpreter.run(content, interpreter.to_file_inputs(file, rows))
        values = [
            interpreter.dequantize(file, index, array)
            for index, array in zip(file.outputs, received, strict=True)
        ]
    if len(values) == 1:
        return values[0]
    return values if names[1] is None else dict(zip(names[1], values, strict=True))


def _names(file, kind):
    """Returns the names of inputs or outputs in the first signature, `None` without one."""
    signatures = file.model.signatureDefs
    if not signatures:
        return None
    named = {entry.tensorIndex: entry.name.decode() for entry in getattr(signatures[0], kind)}
    indices = getattr(file, kind)
    return [named[i] for i in indices] if all(i in named for i in indices) else None


def _rows(file, data, names):
    """Returns checked arrays in the order of the file's inputs."""
    if isinstance(data, dict):
        if names is None or set(data) != set(names):
            raise ValueError(
                f"`data` must have an array for each input of the file: {names}. "
                f"Received: {list(data)}."
            )
        data = [data[name] for name in names]
    arrays = [np.asarray(x) for x in (data if isinstance(data, list | tuple) else [data])]
    shapes = [file.shape(index) for index in file.inputs]
    fits = len(arrays) == len(shapes) and all(
        array.ndim == len(shape) and len(array) == len(arrays[0]) > 0
        for array, shape in zip(arrays, shapes, strict=True)
    )
    if not fits or not all(map(_same_rows, file.inputs, arrays, [file] * len(arrays))):
        raise ValueError(
            f"`data` must be rows of the file's inputs, whose shapes are {shapes}. "
            f"Received: shapes {[array.shape for array in arrays]}."
        )
    return [_as_fed(file, i, array) for i, array in zip(file.inputs, arrays, strict=True)]


def _same_rows(index, array, file):
    free = file.subgraph.tensors[index].shapeSignature
    shape = file.shape(index) if free is None else free
    return all(n in (-1, m) for n, m in zip(shape[1:], array.shape[1:], strict=True))


def _as_fed(file, index, array):
    """Returns real numbers where a grid waits for them, else values of the file's type."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"`data` must hold numbers. Received: dtype {array.dtype}.")
    if not np.isfinite(array).all():
        raise ValueError("`data` must be finite. Received: values that are NaN or Inf.")
    kind = file.type(index)
    return array.astype("float32" if file.scale(index).size else kind.lower())
