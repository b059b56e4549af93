"""`OperationLayer`: a `keras.ops` node of a functional model, as a layer."""

import keras
import tensorflow as tf
from keras import ops, tree

from tfquant.layers.integers import add
from tfquant.quantizers import grid_of


def _index_of(find):
    """Returns the function of an operation that finds the place of an extreme value.

    Keras's own tells -0.0 from 0.0 by their bits, which LiteRT does not.
    """

    def call(layer, x):
        axis, keepdims = layer.operation.axis, layer.operation.keepdims
        y = find(tf.reshape(x, [-1]) if axis is None else x, axis=axis or 0, output_type=tf.int32)
        if not keepdims:
            return y
        return tf.expand_dims(y, axis) if axis is not None else tf.reshape(y, [1] * len(x.shape))

    return call


# Operations in a form that LiteRT has an operator for: functions of the layer and the arguments.
_PLAIN = {
    "Add": lambda layer, a, b: add(a, b),
    "Argmax": _index_of(tf.argmax),
    "Argmin": _index_of(tf.argmin),
}


# Operations that are infinite at 0, and which argument must not be there. A logarithm is
# minus infinity, which a grid and LiteRT both take for the least value there is.
_POLES = {
    **dict.fromkeys(("Reciprocal", "Rsqrt"), 0),
    **dict.fromkeys(("Divide", "TrueDivide"), 1),
}


@keras.saving.register_keras_serializable(package="tfquant")
class Place:
    """Holds the place of a tensor among the arguments of a call.

    Args:
        index: Which of the call's tensors.
    """

    def __init__(self, index: int):
        self.index = index

    def get_config(self):
        return {"index": self.index}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfquant")
class HeldWeight:
    """Holds the place of a variable among the arguments of a call.

    Args:
        index: Which of the layer's weights.
        shape: Shape of the variable.
        trainable: Whether it trains.
    """

    def __init__(self, index: int, shape, trainable: bool):
        self.index, self.shape, self.trainable = index, tuple(shape), trainable

    def get_config(self):
        return {"index": self.index, "shape": list(self.shape), "trainable": self.trainable}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfquant")
class OperationLayer(keras.layers.Layer):
    """Calls a Keras operation, such as the `Add` behind `x + 1.0`, so that it can be wrapped.

    Args:
        operation: `keras.Operation` that is not a layer.
        arguments: List of the positional arguments of the call. A KerasTensor (or `Place`) among
            them stands for a tensor that the layer is called on, a variable becomes a weight of
            this layer; the rest (numbers, slices) are passed on.
        keywords: Dict of the keyword arguments, likewise.

    Call arguments:
        *inputs: The tensors, in the order in which the arguments name them.
    """

    def __init__(self, operation, arguments, keywords, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.operation = operation
        count, self.held = 0, []

        def place(x):
            nonlocal count
            if isinstance(x, (keras.Variable, HeldWeight)):
                return self._hold(x)
            if not isinstance(x, (keras.KerasTensor, Place)):
                return x
            count += 1
            return Place(count - 1)

        self.arguments, self.keywords = tree.map_structure(place, (list(arguments), dict(keywords)))
        self.built = True

    def _hold(self, x):
        number = len(self.held)
        weight = self.add_weight(
            shape=x.shape, name=f"held_{number}", trainable=x.trainable, dtype="float32"
        )
        if isinstance(x, keras.Variable):
            weight.assign(x)
        self.held.append(weight)
        return HeldWeight(number, x.shape, x.trainable)

    def without_poles(self, inputs, grids) -> list:
        """Returns inputs of which none is 0 where the operation has no value.

        A grid holds 0, and brings to it what no real value was. The smallest step of one of 16 bits
        stands for it, in the simulation and in the file: LiteRT rounds infinity to the lowest
        number there. To 8 bits it rounds it to the end of the grid, which is near what the
        smallest values give.

        Args:
            inputs: Tensors.
            grids: The `Grid` of each, `None` for one that is not on a grid.
        """
        name, found = type(self.operation).__name__, list(inputs)
        position = _POLES.get(name)
        if name == "Power" and self._exponent() < 0:
            position = 0
        at = None if position is None else self.arguments[position : position + 1]
        grid = grids[at[0].index] if at and isinstance(at[0], Place) else None
        if grid is not None and grid.spec.stored_bits > 8:
            x, step = found[at[0].index], grid.params.scale
            found[at[0].index] = (
                ops.maximum(x, step) if name == "Rsqrt" else ops.where(ops.equal(x, 0.0), step, x)
            )
        return found

    def _exponent(self):
        exponent = self.arguments[1] if len(self.arguments) > 1 else self.keywords.get("x2", 1)
        return exponent if isinstance(exponent, (int, float)) else 1

    def call(self, *inputs):
        """Calls the operation."""
        inputs = self.without_poles(inputs, [grid_of(x) for x in inputs])
        args, kwargs = self._placed(inputs, [variable.value for variable in self.held])
        plain = _PLAIN.get(type(self.operation).__name__)
        return self.operation(*args, **kwargs) if plain is None else plain(self, *args, **kwargs)

    def compute_output_spec(self, *inputs):
        """Returns KerasTensors as the operation announces them: tracing it may lose their sizes."""
        held = [keras.KerasTensor(variable.shape, variable.dtype) for variable in self.held]
        args, kwargs = self._placed(inputs, held)
        return self.operation.compute_output_spec(*args, **kwargs)

    def _placed(self, inputs, held):
        """Returns the arguments of the operation, positional ones and the others."""

        def value(x):
            if isinstance(x, Place):
                return inputs[x.index]
            return held[x.index] if isinstance(x, HeldWeight) else x

        return tree.map_structure(value, (list(self.arguments), dict(self.keywords)))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "operation": serialize(self.operation),
            "arguments": serialize(list(self.arguments)),
            "keywords": serialize(dict(self.keywords)),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for key in ("operation", "arguments", "keywords"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        config.pop("autocast", None)
        return cls(**config)
