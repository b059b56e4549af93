"""The networks of `keras.applications`, small, with random weights that make sense.

A network fresh from its constructor is no test: every batch norm stands at 0 and 1, layer scales
hide their branches and all inputs get the same prediction. `network` gives it the statistics of its
data, gains and shifts, and scores that depend on the input.
"""

import inspect

import keras
import numpy as np
from keras import applications, layers

CLASSES = 10
STATISTICS_ROWS = 16
LARGEST_SIDE = 128

# The standard deviation of each logit over inputs: predictions differ, and no softmax is one-hot.
LOGIT_SPREAD = 2.0


def names() -> list[str]:
    """Returns the names of all networks that `keras.applications` has."""
    return sorted(name for name, value in vars(applications).items() if inspect.isfunction(value))


def network(name: str, seed: int = 0, side: int | None = None):
    """Returns a network of `keras.applications` of random weights.

    Args:
        name: One of `names()`.
        seed: Of weights and of the images that they are fitted to.
        side: Of its input, in pixels; the default is the smallest that it takes.

    Raises:
        ValueError: If it takes no input of that side, or of up to 128 by 128.
    """
    keras.utils.set_random_seed(seed)
    sides = range(32, LARGEST_SIDE + 1) if side is None else [side]
    model = _smallest(getattr(applications, name), sides)
    rng = np.random.default_rng(seed)
    for layer in _layers(model):
        for weight in layer.trainable_weights:
            if len(weight.shape) == 1:
                low, high = (0.5, 1.5) if weight.name == "gamma" else (-0.2, 0.2)
                weight.assign(rng.uniform(low, high, weight.shape))
    rows = images(model, STATISTICS_ROWS, seed)
    _fit_statistics(model, rows)
    _spread_scores(model, rows)
    return model


def images(model, count: int, seed: int) -> np.ndarray:
    """Returns `count` blurred random images in the range that the network takes.

    Args:
        model: From `network`.
        count: Number of images.
        seed: Of the images.
    """
    rng = np.random.default_rng(seed)
    side = model.input_shape[1]
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)) * rng.uniform(0.3, 1, (count, 1, 1, 3))
    fine = np.kron(coarse, np.ones((1, -(-side // 4), -(-side // 4), 1)))[:, :side, :side]
    pixels = np.clip(fine + rng.normal(0, 12, fine.shape), 0, 255)
    if any(isinstance(layer, (layers.Rescaling, layers.Normalization)) for layer in _layers(model)):
        return pixels.astype("float32")  # It rescales by itself.
    return (pixels / 127.5 - 1).astype("float32")


def _smallest(build, sides):
    for side in sides:
        try:
            return build(weights=None, input_shape=(side, side, 3), classes=CLASSES)
        except ValueError as error:
            refused = error
    raise ValueError(f"A network of {sides[0]} to {sides[-1]} pixels a side is expected: {refused}")


def _layers(model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _layers(layer)


def _fit_statistics(model, rows):
    """Gives every batch norm the mean and variance of what it sees."""
    norms = [x for x in _layers(model) if isinstance(x, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(rows, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _spread_scores(model, rows):
    """Centres and scales the logits over `rows`."""
    head = next(x for x in reversed(list(_layers(model))) if x.weights)
    features = keras.Model(model.input, head.input)(rows, training=False)
    kernel, bias = head.get_weights()
    logits = np.asarray(head.call(features)).reshape(len(rows), -1)
    scores = np.log(np.maximum(logits, 1e-30)) if _is_softmax(head) else logits
    scores = scores - scores.mean(-1, keepdims=True)
    gain = LOGIT_SPREAD / scores.std(0).mean()
    head.set_weights([kernel * gain, (bias - scores.mean(0)) * gain])


def _is_softmax(layer):
    return getattr(layer, "activation", None) is keras.activations.softmax
