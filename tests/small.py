"""What tests of several rooms make their small models with."""

import importlib.util
import os
import pathlib

import keras
import numpy as np
import pytest

from tfquant.registry import SCHEMES
from tfquant.unfold.unfold import unfold


def randomize(model, rng):
    """Gives every float weight a random value, variances positive ones."""
    for variable in model.weights:
        values = rng.normal(size=variable.shape) * 0.4
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return model


def chain(start, *parts):
    """Returns a functional model of layers called one after the other, on a shape or an input."""
    x = y = start if isinstance(start, keras.KerasTensor) else keras.Input(start)
    for part in parts:
        y = part(y)
    return keras.Model(x, y)


def filled(layer, rng):
    """Gives a built layer weights of which none is zero."""
    layer.set_weights([rng.normal(size=w.shape) * 0.5 for w in layer.get_weights()])


def whole_and_parts(layer, rng, *inputs, **arguments):
    """Returns what `layer` computes of `inputs`, whole and unfolded, as flat lists."""
    tensors = [keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs]
    whole = keras.Model(tensors, layer(*tensors, **arguments))
    filled(layer, rng)
    parts = unfold(layer, SCHEMES["w8a8"])(tuple(tensors), arguments)
    return [keras.tree.flatten(model(list(inputs))) for model in (whole, parts)]


def assert_same(pair):
    """Raises if two lists of arrays differ by more than float arithmetic does."""
    for expected, received in zip(*pair, strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-5)


def trained(name):
    """One of the models that `benchmarks/` run, where they are, and rows for it."""
    data = os.environ.get("TFQUANT_DATA")
    if not data:
        pytest.skip("needs TFQUANT_DATA, the folder of load.py and the models")
    model = keras.models.load_model(pathlib.Path(data, name + ".keras"), compile=False)
    spec = importlib.util.spec_from_file_location("load", pathlib.Path(data, "load.py"))
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    known = {
        "ic_resnet8": lambda: load.cifar10("test"),
        "kws_dscnn": load.kws,
        "kws_gru_s": load.kws_rnn25,
        "kws_lstm_s": load.kws_rnn,
    }
    make = known.get(name.split("/")[1])
    if make is None:
        return model, np.random.default_rng(0).normal(size=(16, *model.input_shape[1:]))
    return model, make()[0][:16].astype("float32")
