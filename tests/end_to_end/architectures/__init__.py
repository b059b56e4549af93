"""Small models after real architectures, one function each: `MODELS`, by name.

A function returns a built Keras model. `data_of` makes inputs for any of them.
"""

import keras
import numpy as np

from architectures import images, sequences, tables

MODELS = {**images.MODELS, **sequences.MODELS, **tables.MODELS}


def build(name):
    """Returns the model `name`, its weights and statistics drawn from a fixed seed."""
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    generator = np.random.default_rng(0)
    for variable in model.weights:
        kind = variable.path.rsplit("/", 1)[-1]
        if kind in ("moving_mean", "beta", "bias"):
            variable.assign(generator.normal(0, 0.1, variable.shape))
        elif kind in ("moving_variance", "gamma"):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        elif kind == "embeddings":
            variable.assign(generator.normal(0, 0.5, variable.shape))
    return model


def data_of(model, rows=48):
    """Returns inputs of `model`: images from 0 to 1, sequences, ids below 16, masks of 0 and 1."""
    generator = np.random.default_rng(1)
    arrays = []
    for x in model.inputs:
        shape = (rows, *x.shape[1:])
        if "mask" in x.name or "adjacency" in x.name:
            mask = generator.uniform(size=shape) > 0.4
            if "adjacency" in x.name:
                mask |= np.eye(shape[-1], dtype=bool)
            arrays.append(mask.astype(x.dtype))
        elif "uint8" in x.dtype:
            arrays.append(generator.integers(0, 256, shape).astype("uint8"))
        elif "int" in x.dtype:
            arrays.append(generator.integers(1, 16, shape).astype(x.dtype))
        elif len(shape) == 4:
            arrays.append(generator.uniform(0, 1, shape).astype("float32"))
        else:
            arrays.append(generator.normal(0, 1, shape).astype("float32"))
    return arrays if len(arrays) > 1 else arrays[0]
