"""The float `.tflite` file that everything is written into."""

import dataclasses
import re

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfquant.layers.plain import Barrier, PlainDense, PlainSum
from tfquant.litert.flatbuffer import File
from tfquant.rewrite.lower import Lowered
from tfquant.skeleton.codes import Skeleton, Stored

LIMIT = np.float32(Barrier.LIMIT)

# Name of the inputs that stand for kernels.
KERNEL = "tfquant_kernel"

# Operators that repeat an operand of one row for each row of the other.
BROADCASTING = ("ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "SQUARED_DIFFERENCE", "SUB")

# Layers whose operators know no sizes of images.
_ANY_SIZE = (
    keras.layers.Activation,
    keras.layers.AveragePooling2D,
    keras.layers.Concatenate,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dropout,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.Identity,
    keras.layers.InputLayer,
    keras.layers.MaxPooling2D,
    keras.layers.Multiply,
    keras.layers.ReLU,
    keras.layers.ZeroPadding2D,
    Barrier,
    PlainDense,
    PlainSum,
)


@dataclasses.dataclass(frozen=True, eq=False)
class FloatFile:
    """The float file, without quantized weights.

    Attributes:
        file: `File` whose inputs and outputs have the order of the model's.
        weights: Dict from `(operator index, tensor index)` to the `Stored` weight that is read.
        num_bytes: Size with all weights in float32.
        graph: `Traced` that it was made from.
    """

    file: File
    weights: dict[tuple[int, int], Stored]
    num_bytes: int
    graph: "Traced"


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """The graph that the file is made from.

    Attributes:
        inputs: Its input tensors.
        outputs: Its output tensors.
        points: The tensor of each point of the model, in their order.
    """

    inputs: list
    outputs: list
    points: list

    @property
    def operations(self) -> list:
        """The operations of the graph, each behind those that it reads."""
        return self.inputs[0].graph.get_operations()


def convert_float(lowered: Lowered, batch_size: int | None, rows: list[np.ndarray]) -> FloatFile:
    """Converts the float model of `lowered`.

    The weights enter the graph as constants, so that the converter has no variables to freeze, and
    quantized ones not at all: see `skeleton`.

    Args:
        lowered: From `tfquant.rewrite.lower`.
        batch_size: Fixed batch dimension, `None` to leave free dimensions free.
        rows: One array for each input: what free lengths become beside a fixed batch.

    Returns:
        `FloatFile`.

    Raises:
        ValueError: If LiteRT has no operators for a layer that stays float.
    """
    fixed = any(type(layer) not in _ANY_SIZE for layer in lowered.model.layers)
    specs = [
        tf.TensorSpec(_shape(x, batch_size, array, fixed), x.dtype, name=_identifier(x.name))
        for x, array in zip(lowered.model.inputs, rows, strict=True)
    ]
    found, changed = _convert(lowered, specs, Skeleton(lowered))
    known = changed
    while changed:  # The converter computed with weights: once more with their values.
        found, changed = _convert(lowered, specs, Skeleton(lowered, known))
        known |= changed  # Beside values it may compute with others.
    return found


def _convert(lowered, specs, skeleton) -> tuple[FloatFile, frozenset[int]]:
    """Returns the file, and the ids of the weights that the converter computed with."""
    model, points = lowered.model, []
    ends = [*tree.flatten(model.output), *(point.tensor for point in lowered.points)]
    watched = keras.Model(model.input, ends, name=model.name)
    kernels, codes = skeleton.kernels, skeleton.codes
    inputs = {id(variable) for variable in kernels}
    others = [v for v in model.variables if id(v) not in inputs]
    values = [(v, codes[id(v)] if id(v) in codes else v.numpy()) for v in others]
    kernel_specs = [
        tf.TensorSpec(v.shape, v.dtype, name=f"{KERNEL}_{number}")
        for number, v in enumerate(kernels)
    ]

    @tf.function(input_signature=[*specs, *kernel_specs], autograph=False)
    def call(*arrays):
        frozen = [(v, tf.constant(x, v.dtype, v.shape)) for v, x in values]
        frozen += zip(kernels, arrays[len(specs) :], strict=True)
        rows = tree.pack_sequence_as(model.input, arrays[: len(specs)])
        with keras.StatelessScope(state_mapping=frozen, initialize_variables=False):
            found = watched(rows, training=False)
        count = len(ends) - len(lowered.points)
        points[:] = found[count:]
        return found[:count]

    concrete = call.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    converter.exclude_conversion_metadata = True
    file = File(_converted(converter, concrete, model))
    file.remove(_behind_barrier)
    file.remove(_in_one_row)
    stored, changed = skeleton.find(file)
    tensors = {index: weight for (_, index), weight in stored.items()}
    weights = 4 * sum(int(np.prod(weight.shape)) for weight in tensors.values())
    outputs = tree.flatten(concrete.structured_outputs)
    traced = Traced(concrete.inputs[: len(specs)], outputs, list(points))
    return FloatFile(file, stored, len(file.to_bytes()) + weights, traced), changed


def _shape(x, batch_size, array, fixed):
    """Returns the shape of an input of the file.

    With a free length of a sequence the converter leaves the bias of a dense layer behind a
    reshape, where no kernel applies it. The sizes of images do no harm where no layer computes
    with them.
    """
    if batch_size is None:
        return x.shape
    if len(x.shape) > 3 and not fixed:
        return batch_size, *x.shape[1:]
    return batch_size, *(n or size for n, size in zip(x.shape[1:], array.shape[1:], strict=True))


def _behind_barrier(file, op):
    """Returns what a `Barrier` hands on; `None` for other operators."""
    limits = [i for i in op.inputs if file.is_constant(i) and file.type(i) == "FLOAT32"]
    if op.name != "MINIMUM" or not any(is_limit(file.constant(i)) for i in limits):
        return None
    return next(i for i in op.inputs if not file.is_constant(i))


def _in_one_row(file, op):
    """Returns the one row of a constant that is copied for each row where nobody needs copies."""
    if op.name != "BROADCAST_TO" or not file.is_constant(op.inputs[0]):
        return None
    row, rows = op.inputs[0], op.outputs[0]
    size = file.shape(row)[1:] == file.shape(rows)[1:]

    def broadcasts(reader):
        others = [i for i in reader.inputs if i != rows]
        ranks = {len(file.shape(i)) for i in others if not file.is_constant(i)}
        return reader.name in BROADCASTING and ranks == {len(file.shape(row))}

    readers = file.consumers(rows)
    idle = size and rows not in file.outputs and all(map(broadcasts, readers))
    return row if idle and readers else None


def is_limit(value: np.ndarray) -> bool:
    """Whether a constant is that of a `Barrier`."""
    return value.size == 1 and bool((value >= LIMIT).all() and np.isfinite(value).all())


def _converted(converter, function, model):
    """Converts, or says which layers LiteRT has no operators for."""
    try:
        return converter.convert()
    except Exception as error:  # The converter's own error type is not public.
        missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        if not missing:
            raise
        places = [op.name for op in function.graph.get_operations() if op.type in missing]
        named = [x.name for x in model.layers if any(_is_inside(x.name, p) for p in places)]
        raise ValueError(
            f"LiteRT has no operator for {', '.join(missing)}. Received: layers "
            f"{named or places}. Compute what they do before the model or behind it."
        ) from error


def _identifier(name):
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def _is_inside(layer, place):
    """Whether an operation of the graph, `model/layer_1/Operation`, is one of the layer's."""
    return re.search(rf"(^|/){re.escape(layer)}(_\d+)?/", place) is not None
