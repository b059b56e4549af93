"""`Runner`: a functional model run call by call."""

import inspect
import math

import keras
import numpy as np
from keras import tree

from tfquant.graph.graph import clone_graph, put_in_place, tensors
from tfquant.graph.walk import is_readable


class Inferring:
    """A layer with a shorter way at inference than its call by Keras, which no mask travels."""

    def infer(self, *args, **kwargs):
        """Returns what its call returns at inference, without gradients.

        Args:
            *args: Of the call: tensors and settings, no arrays.
            **kwargs: Likewise, without `training`.
        """
        raise NotImplementedError


class Runner:
    """Runs a functional model, and forgets what nobody reads any more.

    Keras keeps all that a model computes until its last layer has run; of images that is many times
    the memory of the weights.

    Args:
        model: Functional or sequential model. It is read once: its calls, not its weights.

    Attributes:
        calls: Its `RunnerCall`s, in order.
        inputs: Its inputs, KerasTensors.
        ends: Its outputs, likewise.
        values_per_row: Number of values that all calls compute for a row, a free size taken for 1.
    """

    def __init__(self, model):
        self.calls = []
        copy = clone_graph(model, lambda layer: layer, self._note)
        self.inputs, self.ends = tree.flatten(copy.input), tree.flatten(copy.output)
        read_last = {}
        for number, call in enumerate(self.calls):
            read_last.update(dict.fromkeys((*tree.flatten(call.outputs), *call.inputs), number))
        if not any(call.makes_mask for call in self.calls):
            for call in self.calls:
                call.shorten()
        made = [x for call in self.calls for x in tensors(call.outputs)]
        self.values_per_row = sum(math.prod(n or 1 for n in x.shape[1:]) for x in made)
        kept = set(self.ends)
        for x, number in read_last.items():
            if x not in kept:
                self.calls[number].last.append(x)

    def _note(self, layer, *args, **kwargs):
        """Notes a call of the model; returns what stands for its outputs."""
        kwargs.pop("training", None)
        outputs = _Stand(layer)(*args, **kwargs)
        self.calls.append(RunnerCall(layer, args, kwargs, outputs))
        return outputs

    def __call__(self, arrays, see=None) -> list:
        """Runs the model at inference.

        Args:
            arrays: Inputs of the model, a list.
            see: Function of the layer (or operation), the arguments, the keyword arguments and the
                outputs of a call, which sees each of them when it was computed.

        Returns:
            The outputs of the model, a list of tensors.
        """
        values = {
            x: keras.ops.convert_to_tensor(array, x.dtype)
            for x, array in zip(self.inputs, arrays, strict=True)
        }
        value = lambda x: values[x] if isinstance(x, keras.KerasTensor) else x  # noqa: E731
        for call in self.calls:
            args, kwargs = tree.map_structure(value, (call.args, call.kwargs))
            outputs = call.run(*args, **kwargs, **call.training)
            if see is not None:
                see(call.layer, args, kwargs, outputs)
            flat = zip(tree.flatten(call.outputs), tree.flatten(outputs), strict=True)
            values.update((x, y) for x, y in flat if isinstance(x, keras.KerasTensor))
            for x in call.last:
                del values[x]
        return [values[x] for x in self.ends]


def rows_first(x, shape):
    """Returns an array of that shape with the free axis in front, where another is there."""
    return x if not counts_elsewhere(shape) else np.moveaxis(x, shape.index(None), 0)


def each_rows_first(values, shape):
    """Returns arrays of rows that were computed one by one as one, as `rows_first` does."""
    if not counts_elsewhere(shape):
        return values
    axis, shape = shape.index(None), [-1 if n is None else n for n in shape]
    # A row may be several along that axis.
    return np.concatenate([np.moveaxis(row.reshape(shape), axis, 0) for row in values])


def counts_elsewhere(shape) -> bool:
    """Whether the rows of a tensor of that shape are counted on another axis than the first."""
    return None in shape and shape[0] is not None


def flattened(model):
    """Returns a model of which no layer is a model, with the layers of `model` themselves.

    Args:
        model: Functional or sequential model.

    Returns:
        `model` itself where it has no functional or sequential model among its layers.
    """
    if not any(map(is_readable, model.layers)):
        return model
    flat = clone_graph(model, lambda layer: layer, _call_flat)
    for name in ("calibration_samples", "correction"):  # What calibration left on it.
        setattr(flat, name, getattr(model, name, None))
    return flat


def _call_flat(layer, *args, **kwargs):
    """Calls a layer, and of a model each layer by itself."""
    if not is_readable(layer):
        return layer(*args, **kwargs)
    calls = []

    def note(inner, *inner_args, **inner_kwargs):
        outputs = _Stand(inner)(*inner_args, **inner_kwargs)
        calls.append(RunnerCall(inner, inner_args, inner_kwargs, outputs))
        return outputs

    copy = clone_graph(layer, lambda inner: inner, note)
    values = dict(zip(tree.flatten(copy.input), tensors((args, kwargs)), strict=True))
    for call in calls:
        inner_args, inner_kwargs = put_in_place((call.args, call.kwargs), values)
        outputs = _call_flat(call.layer, *inner_args, **inner_kwargs)
        values.update(zip(call.flat_outputs, tree.flatten(outputs), strict=True))
    return put_in_place(copy.output, values)


class RunnerCall:
    """A call of a model.

    Attributes:
        layer: `keras.layers.Layer` or `keras.Operation`.
        args: Positional arguments; tensors are KerasTensors of the `Runner`.
        kwargs: Keyword arguments, likewise.
        outputs: Structure of KerasTensors.
        last: KerasTensors that nobody reads behind it.
        run: What computes the outputs.
        training: Keyword arguments of `run` beside those of the call.
    """

    def __init__(self, layer, args, kwargs, outputs):
        self.layer, self.args, self.kwargs, self.outputs = layer, args, kwargs, outputs
        self.inputs, self.last, self.run = tensors((args, kwargs)), [], layer
        is_layer = isinstance(layer, keras.layers.Layer)
        takes_training = is_layer and "training" in inspect.signature(layer.call).parameters
        self.training = {"training": False} if takes_training else {}

    @property
    def makes_mask(self) -> bool:
        """Whether the outputs may carry a mask where no input does."""
        inner = getattr(self.layer, "layer", self.layer)
        if not isinstance(inner, keras.layers.Layer):
            return False
        if type(inner).compute_mask is keras.layers.Layer.compute_mask:
            return isinstance(inner, keras.Model)
        try:
            masks = inner.compute_mask(*self.args[:1], None)
        except Exception:  # Whatever a layer of the user's raises: nobody knows.
            return True
        return any(mask is not None for mask in tree.flatten(masks))

    def shorten(self) -> None:
        """Takes the layer's shorter way, where it has one and reads no array."""
        known = (keras.KerasTensor, bool, int, float, str, type(None))
        plain = all(isinstance(x, known) for x in tree.flatten((self.args, self.kwargs)))
        if isinstance(self.layer, Inferring) and plain:
            self.run, self.training = self.layer.infer, {}

    @property
    def flat_outputs(self) -> list:
        """Its outputs, a list."""
        return tree.flatten(self.outputs)


class _Stand(keras.Operation):
    """Stands for a layer or operation in a graph that is only read."""

    def __init__(self, layer):
        super().__init__()
        self._outputs_of = layer.compute_output_spec

    def call(self, *args, **kwargs):
        """Is never called on values."""
        raise NotImplementedError

    def compute_output_spec(self, *args, **kwargs):
        """Returns new KerasTensors like the layer's."""
        outputs = self._outputs_of(*args, **kwargs)
        return tree.map_structure(lambda y: keras.KerasTensor(y.shape, y.dtype), outputs)
