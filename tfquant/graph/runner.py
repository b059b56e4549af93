"""`Runner`: a functional model run call by call."""

import inspect

import keras
from keras import tree

from tfquant.graph.graph import clone_graph, tensors


class Runner:
    """Runs a functional model, and forgets what nobody reads any more.

    Keras keeps all that a model computes until its last layer has run; of images that is many times
    the memory of the weights.

    Args:
        model: Functional or sequential model. It is read once: its calls, not its weights.
    """

    def __init__(self, model):
        self._calls = []
        copy = clone_graph(model, lambda layer: layer, self._note)
        self._inputs, self._ends = tree.flatten(copy.input), tree.flatten(copy.output)
        read_last = {}
        for number, call in enumerate(self._calls):
            read_last.update(dict.fromkeys((*tree.flatten(call.outputs), *call.inputs), number))
        kept = set(self._ends)
        for x, number in read_last.items():
            if x not in kept:
                self._calls[number].last.append(x)

    def _note(self, layer, *args, **kwargs):
        """Notes a call of the model; returns what stands for its outputs."""
        kwargs.pop("training", None)
        outputs = _Stand(layer)(*args, **kwargs)
        self._calls.append(_Call(layer, args, kwargs, outputs))
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
            for x, array in zip(self._inputs, arrays, strict=True)
        }
        value = lambda x: values[x] if isinstance(x, keras.KerasTensor) else x  # noqa: E731
        for call in self._calls:
            args, kwargs = tree.map_structure(value, (call.args, call.kwargs))
            if call.takes_training:
                kwargs["training"] = False
            outputs = call.layer(*args, **kwargs)
            if see is not None:
                see(call.layer, args, kwargs, outputs)
            flat = zip(tree.flatten(call.outputs), tree.flatten(outputs), strict=True)
            values.update((x, y) for x, y in flat if isinstance(x, keras.KerasTensor))
            for x in call.last:
                del values[x]
        return [values[x] for x in self._ends]


class _Call:
    """A call of a model.

    Attributes:
        layer: `keras.layers.Layer` or `keras.Operation`.
        args: Positional arguments; tensors are KerasTensors of the `Runner`.
        kwargs: Keyword arguments, likewise.
        outputs: Structure of KerasTensors.
        last: KerasTensors that nobody reads behind it.
    """

    def __init__(self, layer, args, kwargs, outputs):
        self.layer, self.args, self.kwargs, self.outputs = layer, args, kwargs, outputs
        self.inputs, self.last = tensors((args, kwargs)), []
        is_layer = isinstance(layer, keras.layers.Layer)
        self.takes_training = is_layer and "training" in inspect.signature(layer.call).parameters


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
