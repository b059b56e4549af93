"""What a layer holds that `keras.Model.quantize` quantized, as levels and steps."""

import dataclasses
import math

import numpy as np
from keras import layers, ops, quantizers

from tfquant.layers import known
from tfquant.pieces.products import axes_of

# Modes of Keras whose weights are integers.
MODES = ("int8", "int4", "gptq", "awq")

# Layers that Keras quantizes.
QUANTIZED = (layers.Dense, layers.EinsumDense, layers.Embedding, known.ReversibleEmbedding)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A matrix of integers.

        matrix[i, j] = levels[i, j] * steps[groups[i], j] / divisors[i]

    Attributes:
        levels: Whole numbers, zero points taken off, `(rows, columns)`.
        steps: `(number of groups, columns)`, float32.
        groups: Number of the group of each row.
        divisors: What rows are divided by behind that, float32, or `None`.
    """

    levels: np.ndarray
    steps: np.ndarray
    groups: np.ndarray
    divisors: np.ndarray | None = None

    def rows_of_groups(self) -> list[tuple[int, np.ndarray]]:
        """Returns the number and the rows of each group that has some."""
        return [(g, np.flatnonzero(self.groups == g)) for g in np.unique(self.groups).tolist()]


def mode_of(layer) -> str | None:
    """Returns the mode in which Keras quantized `layer`, or `None`."""
    return getattr(layer, "quantization_mode", None)


def read(layer, name: str) -> list[Stored]:
    """Returns the matrices of a layer: a kernel as inputs by outputs, a table as values by rows.

    Args:
        layer: Layer that Keras quantized.
        name: What errors call it.

    Returns:
        One, or two where a table has another one for the way back.

    Raises:
        ValueError: If its integers cannot be kept; the error says why.
    """
    mode = mode_of(layer)
    if mode not in MODES:
        raise ValueError(
            f"Layers in the modes {', '.join(MODES)} hold integers. Received: '{name}' in mode "
            f"'{mode}'. Load the float model and quantize that."
        )
    if type(layer) not in QUANTIZED:
        known_types = ", ".join(kind.__name__ for kind in QUANTIZED)
        raise ValueError(
            f"Quantized layers of the types {known_types} are read. Received: '{name}', a "
            f"{type(layer).__name__}."
        )
    if getattr(layer, "lora_enabled", False):
        raise ValueError(
            f"'{name}' has LoRA weights beside its integers. Save the model and load it: Keras "
            "merges them into new integers then."
        )
    if mode in ("gptq", "awq"):
        if not getattr(layer, f"is_{mode}_calibrated", False):
            raise ValueError(f"'{name}' is in mode '{mode}', but has seen no data: it is float.")
        found = [_chosen(layer, mode, name)]
    elif isinstance(layer, layers.Embedding):
        found = _tables(layer, mode)
    else:
        found = [_kernel(layer, mode, name)]
    for stored in found:
        _check(stored, name)
    return found


def matrix_shape(layer, name: str) -> tuple[int, int]:
    """Returns inputs and outputs of the matrix that a dense layer multiplies by.

    Raises:
        ValueError: If an `EinsumDense` multiplies by none: the summed axes must be the last of its
            input and the first of its kernel, and the others the last of its output.
    """
    shape = _kernel_shape(layer)
    if isinstance(layer, layers.Dense):
        return shape
    summed = len(summed_axes(layer, name))
    return math.prod(shape[:summed]), math.prod(shape[summed:])


def summed_axes(layer, name: str) -> list[str]:
    """Returns the letters that an `EinsumDense` sums over; see `matrix_shape`."""
    inputs, kernel, outputs = axes_of(layer.equation)
    summed = [axis for axis in kernel if axis in inputs]
    made = [axis for axis in kernel if axis not in inputs]
    kept = inputs[: len(inputs) - len(summed)]
    if inputs[len(kept) :] != summed or kernel != summed + made or outputs != kept + made:
        raise ValueError(
            "An EinsumDense must sum over the last axes of its input and the first of its kernel. "
            f"Received: '{name}' with equation '{layer.equation}'."
        )
    return summed


def _kernel_shape(layer):
    """Returns the shape of the float kernel."""
    if mode_of(layer) in ("gptq", "awq"):
        shape = layer.kernel_shape if isinstance(layer, layers.Dense) else None
        return tuple(layer.original_kernel_shape if shape is None else shape)
    return tuple(layer.kernel.shape)


def _kernel(layer, mode, name):
    """Reads int8, and int4 by channels or blocks: `q / scale`, `(q - zero) * scale`."""
    rows, columns = matrix_shape(layer, name)
    levels = _integers(layer.kernel).reshape(rows, columns)
    scale = ops.convert_to_numpy(layer.kernel_scale).astype(np.float32)
    if mode == "int8" or not hasattr(layer, "kernel_zero"):
        return _by_channel(levels, scale.reshape(-1))
    return _by_group(levels, scale, layer.kernel_zero, layer.g_idx)


def _chosen(layer, mode, name):
    """Reads GPTQ and AWQ, which store outputs by inputs."""
    levels = _integers(layer.kernel).T
    if levels.shape != matrix_shape(layer, name):
        # Keras takes the largest axis of three for the model's width, whatever the equation says.
        raise ValueError(
            f"The integers of '{name}' must be inputs by outputs, {matrix_shape(layer, name)}. "
            f"Received: {levels.shape}, of a kernel of shape {_kernel_shape(layer)}."
        )
    scale = ops.convert_to_numpy(layer.kernel_scale).astype(np.float32).T
    zero = ops.convert_to_numpy(layer.kernel_zero).T
    stored = _by_group(levels, scale, zero, layer.g_idx)
    if mode == "gptq":
        return stored
    return dataclasses.replace(
        stored, divisors=ops.convert_to_numpy(layer.awq_scales).astype(np.float32)
    )


def _tables(layer, mode):
    """Reads a table, values by rows: each row has a scale, or one for each block of values."""
    levels = _integers(layer.embeddings).T
    scale = ops.convert_to_numpy(layer.embeddings_scale).astype(np.float32)
    if mode == "int4" and hasattr(layer, "embeddings_zero"):
        zero = ops.convert_to_numpy(layer.embeddings_zero).T
        found = [_by_group(levels, scale.T, zero, layer.g_idx)]
    else:
        found = [_by_channel(levels, scale)]
    if not getattr(layer, "tie_weights", True):
        found.append(_table_back(layer, mode))
    return found


def _table_back(layer, mode):
    """Reads the table of the way back, values by rows as well."""
    packed, rows = layer.reverse_embeddings, layer.output_dim
    if mode == "int4":
        packed = quantizers.unpack_int4(packed, rows, axis=0)
    scale = ops.convert_to_numpy(layer.reverse_embeddings_scale).astype(np.float32)
    if hasattr(layer, "reverse_embeddings_zero"):
        return _by_group(_integers(packed), scale, layer.reverse_embeddings_zero, layer.g_idx)
    return _by_channel(_integers(packed), scale)


def _by_channel(levels, inverse):
    """Returns what has one inverse step for each column."""
    steps = (1 / inverse.astype(np.float64)).astype(np.float32)[None]
    return Stored(levels, steps, np.zeros(len(levels), np.int64))


def _by_group(levels, scale, zero, groups):
    """Returns what has a step and a zero point for each group and column."""
    groups = ops.convert_to_numpy(groups).astype(np.int64)
    zero = ops.convert_to_numpy(zero).astype(np.int64)
    return Stored(levels - zero[groups], scale, groups)


def _integers(x):
    return np.asarray(ops.convert_to_numpy(x)).astype(np.int64)


def _check(stored, name):
    """Raises unless numbers are such as arithmetic can keep."""
    steps = stored.steps
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise ValueError(
            f"The steps of '{name}' must be positive and finite. Received: {steps.min()} to "
            f"{steps.max()}."
        )
    low, high = stored.levels.min(initial=0), stored.levels.max(initial=0)
    if low < -128 or high > 127:
        raise ValueError(
            f"The levels of '{name}' must fit 8 bits when their zero points are taken off. "
            f"Received: {low} to {high}. GPTQConfig(symmetric=True) and int4 fit."
        )
