"""`compare`: a Keras model against a `.tflite` file, on the user's data."""

import os

import keras
import numpy as np
from keras import tree
from rich.progress import Progress

from tfquant.data.batches import cast, check_form, joined
from tfquant.litert.inspect import checked_file, damage_named
from tfquant.litert.interpreter import run, to_file_inputs
from tfquant.litert.parity import of_outputs
from tfquant.report import Parity


def compare(
    model, path, data, *, labels=None, batch_size: int = 32, progress: bool = True
) -> Parity:
    """Runs a model and a file on the same inputs and counts the differences.

    Where the file returns integers, the model's outputs are compared in steps of its grid, which
    does not clip them; elsewhere real values are compared, relative to the largest of them.

    Args:
        model: Keras model, float or quantized.
        path: The `.tflite` file; it may come from any converter.
        data: Array, list of arrays in the order of the model's inputs, or dict from input name to
            array.
        labels: The right class of each row, or one-hot; `None` without. With them the result has
            `accuracies` of model and file.
        batch_size: Rows that the model computes at once.
        progress: Whether to show a progress bar.

    Returns:
        `Parity` of all outputs together.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no `.tflite` file, model, file and data do not fit each other, or the
            data hold NaN or Inf.

    Example:

    ```python
    parity = tfq.compare(q, "model.tflite", images)
    assert parity.differing == 0
    ```
    """
    path = os.fspath(path)
    with open(path, "rb") as opened:
        content = opened.read()
    file = checked_file(content, path)
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"A functional or sequential model is expected. Received: '{model.name}' "
            f"({type(model).__name__}), which has no known inputs."
        )
    rows = _rows(data, model.inputs)
    with damage_named(path, ours=ValueError):
        _check_fit(file, file.inputs, model.inputs, "inputs", path)
        _check_fit(file, file.outputs, model.outputs, "outputs", path)
    with damage_named(path):
        file_rows = to_file_inputs(file, _in_file_types(file, rows))
    with Progress(transient=True, disable=not progress) as bar:
        keras_task = bar.add_task("Running Keras", total=len(rows[0]))
        expected = _predict(model, rows, batch_size, lambda: bar.advance(keras_task, batch_size))
        file_task = bar.add_task("Running LiteRT", total=len(rows[0]))
        with damage_named(path):
            received = run(content, file_rows, lambda: bar.advance(file_task))
            _check_outputs(expected, received)
    with damage_named(path, ours=ValueError):
        return of_outputs(file, expected, received, labels)


def _rows(data, inputs):
    """Returns `data` as one array for each input."""
    names = [x.name for x in inputs]
    if isinstance(data, dict):
        missing = [name for name in names if name not in data]
        if missing:
            raise ValueError(
                f"`data` must have an array for each input: {names}. Received: {list(data)}."
            )
        data = [data[name] for name in names]
    arrays = [np.asarray(x) for x in (data if isinstance(data, list | tuple) else [data])]
    if len(arrays) != len(names):
        raise ValueError(
            f"`data` must hold one array for each input: {names}. Received: {len(arrays)} arrays."
        )
    lengths = {array.shape[:1] for array in arrays}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            "Arrays in `data` must have the same number of rows, at least one. "
            f"Received: shapes {[array.shape for array in arrays]}."
        )
    for x, array in zip(inputs, arrays, strict=True):
        check_form(array, x, f"Input '{x.name}'", (None, *x.shape[1:]))
    return [cast(array, x, f"Input '{x.name}'") for x, array in zip(inputs, arrays, strict=True)]


def _fits(wanted, got):
    """Whether a shape with free dimensions (`None`, -1) and another agree, but for the batch."""
    return len(wanted) == len(got) and all(
        a in (None, -1) or b in (None, -1) or a == b
        for a, b in zip(wanted[1:], got[1:], strict=True)
    )


def _check_fit(file, indices, tensors, role, path):
    """Raises unless inputs or outputs of file and model have the same shapes."""
    theirs = [file.shape(index) for index in indices]
    ours = [tuple(x.shape) for x in tensors]
    fits = len(ours) == len(theirs) and all(_fits(a, b) for a, b in zip(ours, theirs, strict=True))
    if not fits:
        raise ValueError(
            f"Model and file must have the same {role}. Expected: {role} of shapes {ours}. "
            f"Received: '{path}' with {theirs}."
        )


def _check_outputs(expected, received):
    """Raises unless outputs have as many values: a file may compute other shapes than it says."""
    for ours, theirs in zip(expected, received, strict=True):
        if ours.size != theirs.size:
            raise ValueError(f"outputs of {ours.shape} are expected. Received: {theirs.shape}")


def _in_file_types(file, rows):
    """Casts what is neither quantized nor float to the file's types, such as token ids."""
    kinds = [file.type(index).lower() for index in file.inputs]
    return [
        array if file.scale(index).size else array.astype(kind)
        for index, kind, array in zip(file.inputs, kinds, rows, strict=True)
    ]


def _predict(model, rows, batch_size, advance):
    pack = lambda part: tree.pack_sequence_as(model.input, part)  # noqa: E731
    if isinstance(model, keras.Sequential):
        pack = lambda part: part[0]  # noqa: E731
    parts = []
    for start in range(0, len(rows[0]), batch_size):
        part = [array[start : start + batch_size] for array in rows]
        outputs = model(pack(part), training=False)
        parts.append([keras.ops.convert_to_numpy(y) for y in tree.flatten(outputs)])
        advance()
    return joined(parts)
