"""The float model of one that Keras quantized, marked, with the values of its integers."""

import dataclasses

import keras
import numpy as np
from keras import activations, layers, ops

from tfquant.bridges.stored import Stored, matrix_shape, mode_of, read, summed_axes
from tfquant.configs.linear import LinearConfig
from tfquant.configs.weights import WeightsConfig
from tfquant.graph.graph import clone_graph
from tfquant.graph.walk import is_readable, leaves
from tfquant.layers import known
from tfquant.layers.copy import copy_layer, transfer_weights
from tfquant.numerics import PerAxis, QuantSpec
from tfquant.wrappers import QuantizeAnnotate


@keras.saving.register_keras_serializable(package="tfquant")
class TablesConfig(WeightsConfig):
    """Quantizes tables: a scale for each row, and for each column of the one for the way back."""

    def get_weights_and_quantizers(self, layer):
        """Returns the tables with their quantizers."""
        pairs = super().get_weights_and_quantizers(layer)
        if len(pairs) > 1:
            columns = dataclasses.replace(self.weights, granularity=PerAxis(-1))
            pairs[1] = (pairs[1][0], type(pairs[1][1])(columns))
        return pairs


@dataclasses.dataclass(frozen=True)
class Given:
    """A weight of the twin, and what it is to be.

    Attributes:
        name: Name of the layer of the user's model.
        layer: Layer of the twin.
        index: Which of its weights, of those with two axes.
        levels: Integers in the shape of the weight.
        steps: Their steps, which broadcast against it.
    """

    name: str
    layer: keras.layers.Layer
    index: int
    levels: np.ndarray
    steps: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """What the integers stand for."""
        return self.levels.astype(np.float32) * self.steps


class Twin:
    """Makes the twin of a model.

    Args:
        model: Functional or sequential model with layers that Keras quantized.

    Attributes:
        model: Float model: quantized layers are marked, with a config each, or taken apart into
            parts that are.
        given: `Given` of each weight that is integers.
        wholes: Schemes of layers of the twin that have what Keras quantized inside: they are marked
            without a config.
    """

    def __init__(self, model):
        self.given, self.wholes = [], {}
        self._copies, self._weights, self._inside = {}, [], []
        # The gain of a batch norm that is folded may be negative: -8 has no opposite in 4 bits.
        self._folds = any(isinstance(x, layers.BatchNormalization) for x in leaves(model))
        self.model = self._clone(model)
        for copy, values in self._weights:
            copy.set_weights(values)
        for layer, copy in self._copies.values():
            transfer_weights(layer, copy)
        for layer, copy, found in self._inside:
            self._fill(layer, copy, found)

    def _clone(self, model):
        made = {}

        def twin(layer):
            if layer not in made:
                made[layer] = self._twin(layer)
            return made[layer]

        return clone_graph(model, twin)

    def _twin(self, layer):
        if is_readable(layer):
            return self._clone(layer)
        if mode_of(layer) is not None:
            found = read(layer, layer.name)
            if isinstance(layer, layers.Embedding):
                return self._table(layer, found)
            return self._dense(layer, *found)
        inside = _quantized_inside(layer)
        if inside:
            return self._whole(layer, inside)
        copy = copy_layer(layer)
        if isinstance(layer, layers.Layer):
            self._copies[layer] = layer, copy
        return copy

    def _dense(self, layer, stored: Stored):
        """Returns a marked `Dense`, or a model of reshapes and one for each group."""
        name, bias = layer.name, layer.bias
        bias = None if bias is None else ops.convert_to_numpy(bias)
        dynamic = getattr(layer, "inputs_quantizer", None) is not None
        groups = stored.rows_of_groups()
        dynamic = dynamic and len(groups) == 1 and stored.divisors is None
        if isinstance(layer, layers.Dense) and len(groups) == 1 and stored.divisors is None:
            return self._part(layer, name, stored, groups[0], bias, dynamic, layer.activation)
        return self._taken_apart(layer, stored, groups, bias, dynamic)

    def _taken_apart(self, layer, stored, groups, bias, dynamic):
        name, shape = layer.name, layer.get_build_config()["input_shape"]
        x = inputs = keras.Input(batch_shape=shape, name=f"{name}_input")
        rows, columns = matrix_shape(layer, name)
        is_dense = isinstance(layer, layers.Dense)
        summed = 1 if is_dense else len(summed_axes(layer, name))
        free = list(shape[1 : len(shape) - summed])
        made = list(layer.compute_output_shape(shape)[len(shape) - summed :])
        if summed > 1:
            x = _reshaped(x, [*free, rows], f"{name}_joined")
        if stored.divisors is not None:
            x = ops.divide(x, stored.divisors)
        whole_bias = bias is not None and bias.size == columns
        sums = []
        for number, (group, taken) in enumerate(groups):
            part = x if len(groups) == 1 else _taken(x, taken)
            first = bias.reshape(-1) if whole_bias and not number else None
            suffix = f"_{group}" if len(groups) > 1 else ""
            make = self._part(
                layer, f"{name}_dense{suffix}", stored, (group, taken), first, dynamic, None
            )
            sums.append(make(part))
        y = sums[0] if len(sums) == 1 else layers.Add(name=f"{name}_sum")(sums)
        if len(made) != 1:
            y = _reshaped(y, [*free, *made], f"{name}_axes")
        if bias is not None and not whole_bias:
            y = ops.add(y, bias)
        if layer.activation is not activations.linear and layer.activation is not None:
            y = layers.Activation(layer.activation, name=f"{name}_activation")(y)
        return keras.Model(inputs, y, name=name)

    def _part(self, layer, name, stored, group, bias, dynamic, activation):
        """Returns a marked `Dense` that multiplies by the rows of one group."""
        number, rows = group
        levels, steps = stored.levels[rows], stored.steps[number]
        dense = layers.Dense(
            levels.shape[1], activation=activation, use_bias=bias is not None, name=name
        )
        spec = self._spec(levels, 8 if dynamic else 4)
        config = LinearConfig("kernel", -1, spec, None, dynamic=dynamic, operator="FULLY_CONNECTED")
        dense.trainable = layer.trainable
        given = Given(layer.name, dense, 0, levels, steps)
        self.given.append(given)
        self._weights.append((dense, [given.values] + ([] if bias is None else [bias])))
        return QuantizeAnnotate(dense, config, name=f"{name}_marked")

    def _spec(self, levels, bits, granularity=None):
        """Returns the narrowest grid that holds `levels`."""
        low, high = levels.min(initial=0), levels.max(initial=0)
        if max(-low, high) > 2 ** (bits - 1) - (self._folds or high == 2 ** (bits - 1)):
            bits = 8
        narrow = -low < 2 ** (bits - 1)
        return QuantSpec(
            bits, symmetric=True, narrow_range=bool(narrow), granularity=granularity or PerAxis(-1)
        )

    def _table(self, layer, found):
        """Returns a marked table, or a model of one for each block of values."""
        stored = found[0]
        groups = stored.rows_of_groups()
        if len(groups) > 1 and type(layer) is known.ReversibleEmbedding:
            raise ValueError(
                "A ReversibleEmbedding must have one scale for each row. Received: "
                f"'{layer.name}' with blocks. Use Int4QuantizationConfig(block_size=-1) for it."
            )
        if len(groups) == 1:
            copy = copy_layer(layer, quantization_config=None, lora_rank=None, dtype=_source(layer))
            config = TablesConfig(self._spec(np.concatenate([s.levels.ravel() for s in found]), 8))
            config.weights = dataclasses.replace(config.weights, granularity=PerAxis(0))
            values = []
            for index, matrix in enumerate(found):
                levels, steps = (
                    (matrix.levels, matrix.steps) if index else (matrix.levels.T, matrix.steps.T)
                )
                given = Given(layer.name, copy, index, levels, steps)
                self.given.append(given)
                values.append(given.values)
            self._weights.append((copy, values))
            return QuantizeAnnotate(copy, config, name=f"{layer.name}_marked")
        shape = layer.get_build_config()["input_shape"] if layer.get_build_config() else None
        inputs = keras.Input(batch_shape=shape or (None, None), name=f"{layer.name}_input")
        parts = []
        for number, rows in groups:
            levels = stored.levels[rows].T
            table = layers.Embedding(
                *levels.shape, mask_zero=layer.mask_zero, name=f"{layer.name}_block_{number}"
            )
            table.trainable = layer.trainable
            given = Given(layer.name, table, 0, levels, stored.steps[number][:, None])
            self.given.append(given)
            self._weights.append((table, [given.values]))
            config = TablesConfig(self._spec(levels, 8, PerAxis(0)))
            parts.append(QuantizeAnnotate(table, config, name=f"{table.name}_marked")(inputs))
        return keras.Model(inputs, layers.Concatenate(name=f"{layer.name}_joined")(parts))

    def _whole(self, layer, inside):
        """Returns a marked layer with quantized layers inside, such as attention."""
        copy = copy_layer(layer, dtype=_source(layer))
        read_inside = {id(x): (x, self._read_inside(layer, x)) for x in inside}
        dynamic = {getattr(x, "inputs_quantizer", None) is not None for x in inside}
        kinds = {(mode_of(x), d) for x in inside for d in dynamic}
        if len(kinds) > 1:
            raise ValueError(
                f"What is quantized inside of '{layer.name}' must be so in one mode. Received: "
                f"{', '.join(sorted({str(mode_of(x)) for x in inside}))}."
            )
        ((mode, is_dynamic),) = kinds
        bits = 4 if mode == "int4" else 8
        self.wholes[copy] = f"w{bits}a8_dynamic" if is_dynamic and bits == 8 else f"w{bits}"
        self._inside.append((layer, copy, read_inside))
        return QuantizeAnnotate(copy, name=f"{layer.name}_marked")

    def _read_inside(self, layer, part):
        """Returns the matrix of a dense layer inside of `layer`: one step for each output."""
        name = f"{layer.name}/{part.name}"
        found = read(part, name)
        (stored, *_) = found
        if (
            isinstance(part, layers.Embedding)
            or len(stored.steps) > 1
            or stored.divisors is not None
        ):
            raise ValueError(
                "Inside of other layers a dense layer must have a step for each output, and no "
                f"groups. Received: '{name}' in mode '{mode_of(part)}'. Quantize it with "
                "Int4QuantizationConfig(block_size=-1), or 'int8'."
            )
        return stored

    @staticmethod
    def _fill(layer, copy, read_inside):
        """Gives the copy of a layer its weights, integers as what they stand for."""
        for one, other in _pairs(layer, copy):
            if id(one) in read_inside:
                stored = read_inside[id(one)][1]
                values = (stored.levels * stored.steps).astype(np.float32)
                other.kernel.assign(values.reshape(other.kernel.shape))
                if one.bias is not None:
                    other.bias.assign(one.bias)
            else:
                for source, target in zip(_own(one), _own(other), strict=True):
                    target.assign(source)


def _pairs(layer, copy):
    """Yields the layers in `layer`, itself among them, each with that of the copy."""
    waiting, seen = [(layer, copy)], set()
    while waiting:
        one, other = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one, other
        waiting += zip(_held(one), _held(other), strict=True)


def _held(layer) -> list:
    """Returns the layers that attributes of `layer` hold, in the order of their names."""
    named = sorted(vars(layer).items())
    held = [x for name, x in named if isinstance(x, (layers.Layer, list, tuple, dict))]
    return [x for x in keras.tree.flatten(held) if isinstance(x, layers.Layer)]


def _own(layer) -> list:
    """Returns the variables of `layer` that are of no layer in it."""
    inside = {id(v) for x in _held(layer) for v in x.variables}
    return [v for v in layer.variables if id(v) not in inside]


def _source(layer):
    """Returns the dtype policy that the layer had before it was quantized."""
    policy = layer.get_config().get("dtype")
    if isinstance(policy, dict) and policy.get("class_name") == "DTypePolicyMap":
        return policy["config"]["default_policy"]
    return layer.dtype_policy.name.partition("_from_")[2] or layer.dtype_policy


def _quantized_inside(layer) -> list:
    """Returns the layers in `layer` that Keras quantized."""
    found, waiting, seen = [], [layer], set()
    while waiting:
        one = waiting.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            waiting += _held(one)
            if one is not layer and mode_of(one) is not None:
                found.append(one)
    return found


def _reshaped(x, shape, name):
    if shape.count(None) > 1:
        raise ValueError(
            f"'{name}' must have one axis of free length at most beside the batch. Received: shape "
            f"{tuple(shape)}."
        )
    return layers.Reshape([-1 if n is None else n for n in shape], name=name)(x)


def _taken(x, rows):
    """Returns the values `rows` of the last axis."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    if len(rows) == stop - start:
        return x[..., start:stop]
    return ops.take(x, rows, axis=-1)
