"""User data, whatever its form, as checked batches in the order of a model's inputs."""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf


class Batches:
    """Batches of checked arrays; each iteration asks the data for a new iterator.

    Attributes:
        total: Number of batches to come (at most, when `steps` cut an iterator of unknown
            length), or `None` when it is not known.
    """

    def __init__(self, start: Callable[[], Iterable], inputs, total: int | None, steps: int | None):
        known = [n for n in (total, steps) if n is not None]
        self.total = min(known) if known else None
        self._start = start
        self._inputs = inputs
        self._steps = steps

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yields a list of arrays, one for each input, for each batch.

        Raises:
            ValueError: If a batch does not fit the inputs, or if there is none.
        """
        index = -1
        for index, batch in enumerate(itertools.islice(self._start(), self._steps)):
            yield _checked(batch, self._inputs, index)
        if index < 0:
            raise ValueError(
                "`data` must yield at least one batch. Received: an iterator without elements "
                "(a generator can be read only once; pass the function that makes it instead)."
            )


def batches(data: Any, inputs, batch_size: int, steps: int | None = None) -> Batches:
    """Cuts `data` into batches that fit the inputs of a model, and checks them.

    `data` may be

    * an array or tensor, for a model of one input;
    * a list or tuple of arrays in the order of `inputs`, or a dict from input name to array;
    * a `tf.data.Dataset`, which is batched here if its elements are single samples;
    * a generator, any other iterable, or a function without arguments that returns one, yielding
      batches in one of the forms above. Only the function (or a list-like iterable) can be
      iterated more than once.

    The tuples `(x, y)` and `(x, y, sample_weight)` of `fit` stand for their `x`, unless they are
    arrays for as many inputs.

    Arrays are checked whole before this returns, everything else batch by batch.

    Args:
        data: See above.
        inputs: `model.inputs`: objects with `name`, `shape` (`None` for what is free) and `dtype`.
        batch_size: Samples in a batch of array data; the last batch may be smaller. An input with
            a fixed batch dimension overrules it, and leaves out samples that fill no batch.
        steps: Number of batches to stop at, or `None` for all.

    Returns:
        `Batches` of lists of arrays in the order of `inputs`: float32 for an input of floats, else
        of the input's own dtype.

    Raises:
        ValueError: If `data` is empty, does not fit the inputs, or holds NaN or Inf.

    Example:

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> [x.shape for (x,) in batches(np.zeros((5, 3)), model.inputs, batch_size=2)]
    [(2, 3), (2, 3), (1, 3)]
    """
    for name, number in (("batch_size", batch_size), ("steps", steps)):
        if number is not None and (not isinstance(number, int | np.integer) or number < 1):
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={number!r}.")
    fixed_size = next((slot.shape[0] for slot in inputs if slot.shape[0] is not None), None)
    batch_size = fixed_size or batch_size

    if isinstance(data, tf.data.Dataset):
        return _from_dataset(data, inputs, batch_size, fixed_size is not None, steps)
    if hasattr(data, "__array__") or isinstance(data, list | tuple | Mapping):
        return _from_arrays(data, inputs, batch_size, fixed_size is not None, steps)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        length = operator.length_hint(data, -1)
        return Batches(lambda: data, inputs, length if length >= 0 else None, steps)
    if callable(data):
        return Batches(data, inputs, None, steps)
    raise ValueError(
        "`data` must be an array, a list, tuple or dict of arrays, a `tf.data.Dataset`, or an "
        f"iterable or function that yields batches. Received: {_describe(data)}."
    )


def _from_arrays(data, inputs, batch_size, drop_remainder, steps):
    arrays = [
        _as_array(value, slot, f"Input {slot.name!r}")
        for value, slot in zip(_in_order(data, inputs, ""), inputs, strict=True)
    ]
    for array, slot in zip(arrays, inputs, strict=True):
        check_form(array, slot, f"Input {slot.name!r}", (None, *slot.shape[1:]))
    _check_lengths(arrays, inputs, "")
    length = len(arrays[0])
    if drop_remainder and length < batch_size:
        raise ValueError(
            f"The inputs have a fixed batch dimension of {batch_size}, so `data` must have at "
            f"least as many samples. Received: {length} samples."
        )
    stop = length - length % batch_size if drop_remainder else length
    starts = range(0, stop, batch_size)

    def start():
        for first in starts:
            yield [array[first : first + batch_size] for array in arrays]

    for _ in Batches(start, inputs, len(starts), None):
        pass  # Reading every batch once finds NaN and Inf before the first one is used.
    return Batches(start, inputs, len(starts), steps)


def _from_dataset(data, inputs, batch_size, drop_remainder, steps):
    specs = _in_order(data.element_spec, inputs, "")
    ranks = [spec.shape.rank for spec in specs]
    if ranks == [len(slot.shape) - 1 for slot in inputs]:
        data = data.batch(batch_size, drop_remainder=drop_remainder)
    total = int(data.cardinality())
    if total == tf.data.INFINITE_CARDINALITY and steps is None:
        raise ValueError("`data` repeats without end, so `steps` is needed. Received: steps=None.")
    return Batches(lambda: data, inputs, total if total >= 0 else None, steps)


def _checked(batch, inputs, index):
    """Returns the arrays of one batch in the order and dtypes of `inputs`."""
    where = f" of batch {index}"
    labels = [f"Input {slot.name!r}{where}" for slot in inputs]
    values = _in_order(batch, inputs, where)
    arrays = [_as_array(*args) for args in zip(values, inputs, labels, strict=True)]
    for array, slot, label in zip(arrays, inputs, labels, strict=True):
        check_form(array, slot, label, tuple(slot.shape))
    _check_lengths(arrays, inputs, where)
    return [cast(*args) for args in zip(arrays, inputs, labels, strict=True)]


def _in_order(data, inputs, where):
    """Returns what `data` holds for each input, having left out the targets."""
    names = [slot.name for slot in inputs]
    nested = list | tuple | Mapping
    if isinstance(data, tuple) and len(data) in (2, 3):
        # Two arrays for two inputs are the inputs; two arrays for one input are (x, y).
        data = data[0] if len(names) == 1 or isinstance(data[0], nested) else data
    if isinstance(data, Mapping):
        missing = [name for name in names if name not in data]
        unknown = [key for key in data if key not in names]
        if missing or unknown:
            raise ValueError(
                f"The dict{where} must have the keys {names}, the names of the inputs. "
                f"Received: keys {list(data)}; missing: {missing}, unknown: {unknown}."
            )
        return [data[name] for name in names]
    values = list(data) if isinstance(data, list | tuple) else [data]
    if len(values) != len(names):
        kind = "one array" if len(names) == 1 else f"{len(names)} arrays in a list, tuple or dict"
        hint = "" if where else " A list of batches goes in as `iter(list)`."
        raise ValueError(
            f"The data{where} must be {kind} for the inputs {names}. "
            f"Received: {_describe(data)}.{hint}"
        )
    return values


def _as_array(value, slot, label):
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{label} must be an array of shape {tuple(slot.shape)}. "
            f"Received: {_describe(value)}, which numpy cannot read: {error}"
        ) from error


def check_form(array: np.ndarray, slot, label: str, shape: tuple) -> None:
    """Raises unless dtype and shape are those of an input.

    Args:
        array: What was given.
        slot: The input: an object with `name` and `dtype`.
        label: What the error calls it.
        shape: What is expected; `None` for what is free.

    Raises:
        ValueError: If it does not fit, or is empty.
    """
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    kinds = {"bool": "b", "string": "OSU"}.get(slot.dtype, "biu")
    wants_float = "float" in slot.dtype
    if not (array.dtype.kind in kinds or (is_float and wants_float)):
        expected = "numbers" if wants_float else slot.dtype
        raise ValueError(f"{label} must hold {expected}. Received: dtype {array.dtype}.")
    fits = len(shape) == array.ndim and all(
        want in (None, got) for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{label} must have the shape {shape}. Received: shape {array.shape}.")
    if not array.size:
        raise ValueError(f"{label} must not be empty. Received: shape {array.shape}.")


def _check_lengths(arrays, inputs, where):
    lengths = {slot.name: len(array) for slot, array in zip(inputs, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All inputs{where} must have the same length. Received: {lengths}.")


def cast(array: np.ndarray, slot, label: str) -> np.ndarray:
    """Returns `array` in the dtype in which an input is fed.

    Args:
        array: Array of the form of the input.
        slot: The input: an object with `name` and `dtype`.
        label: What the error calls it.

    Raises:
        ValueError: If it holds NaN or Inf, or integers that the dtype does not.
    """
    if slot.dtype == "string":
        return array.astype(object)
    dtype = np.dtype(_dtype(slot))
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # What overflows becomes Inf and is reported below.
            cast = array.astype(dtype, copy=False)
        finite = np.isfinite(cast)
        if not finite.all():
            sample = int(np.argwhere(~finite)[0][0])
            raise ValueError(
                f"{label} must be finite in {dtype}. "
                f"Received: {np.sum(~finite)} values that are NaN or Inf, first in sample {sample}."
            )
        return cast
    if dtype.kind in "iu":
        low, high, limits = int(array.min()), int(array.max()), np.iinfo(dtype)
        if low < limits.min or high > limits.max:
            raise ValueError(f"{label} must fit {dtype}. Received: values from {low} to {high}.")
    return array.astype(dtype, copy=False)


def joined(parts) -> list[np.ndarray]:
    """Returns batches, lists of arrays each, as one: a list of arrays of all rows."""
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _dtype(slot):
    """Returns the name of the dtype in which an input is fed: all floats are float32."""
    return "float32" if "float" in slot.dtype else slot.dtype


def _describe(value):
    if isinstance(value, list | tuple | Mapping):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
