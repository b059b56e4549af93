"""Reading a `call`: run on symbolic tensors, its operations noted and called on others.

A `call` may ask for more than a symbolic tensor knows. Variables that come first in a product
(`self.gain * x`) are replaced by symbolic tensors while it runs. A batch size or length that it
builds shapes and constants of (`ops.arange(ops.shape(x)[1])`) is two numbers in two runs: what
differs between them stands for it. Layers inside it are calls of their own, but where Keras cannot
call them on symbolic tensors: of those the operations are noted as well.
"""

import contextlib

import keras
from keras import tree

from tfquant.graph.graph import tensors
from tfquant.reading.own import is_composite
from tfquant.reading.record import record, without_losses
from tfquant.reading.replay import Replay
from tfquant.reading.sizes import Size, in_two_runs


def read(layer, args: tuple, kwargs: dict, mark=lambda constant: constant):
    """Calls what `layer.call` consists of on KerasTensors.

    Args:
        layer: Built layer or model.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        mark: Function of a `Constant` that returns the layer to call in its place.

    Returns:
        Structure of KerasTensors.

    Raises:
        Exception: What the `call` raised.
    """
    with _specs_from_calls(layer), without_losses(layer):
        return _read(layer, args, kwargs, mark)


def _read(layer, args, kwargs, mark):
    given = list(dict.fromkeys(tensors((args, kwargs))))
    try:
        outputs = layer.call(*args, **kwargs)
        if _all_symbolic(outputs):
            return outputs
    except Exception as error:  # Whatever the user's code raises on symbolic tensors.
        first = error
    else:
        first = ValueError("It returns what does not depend on its inputs.")

    def attempt(*sizes):
        recordings = [record(layer, args, kwargs, given, size) for size in sizes]
        return Replay(layer, recordings, given, mark).outputs()

    try:
        return attempt(Size())
    except Exception:
        try:
            return in_two_runs(given, attempt)
        except Exception as last:
            raise first from last


def _all_symbolic(outputs):
    found = tree.flatten(outputs)
    return bool(found) and all(isinstance(x, keras.KerasTensor) for x in found)


@contextlib.contextmanager
def _specs_from_calls(layer):
    """Lets the layers inside `layer` be called on symbolic tensors as their `call` can be.

    A subclass whose `call` takes more arguments than its parent's inherits a `compute_output_spec`
    that does not know them.
    """
    attributes = [x for x in vars(layer).values() if isinstance(x, (keras.layers.Layer, list))]
    inside = [x for x in tree.flatten(attributes) if is_composite(x)]
    with contextlib.ExitStack() as stack:
        for inner in inside:
            stack.enter_context(_spec_from_call(inner))
        yield


@contextlib.contextmanager
def _spec_from_call(layer):
    def compute_output_spec(*args, **kwargs):
        try:
            return type(layer).compute_output_spec(layer, *args, **kwargs)
        except TypeError:
            with _specs_from_calls(layer):
                outputs = layer.call(*args, **kwargs)
            return tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), outputs)

    vars(layer)["compute_output_spec"] = compute_output_spec
    try:
        yield
    finally:
        vars(layer).pop("compute_output_spec", None)
