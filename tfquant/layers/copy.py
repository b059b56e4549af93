"""Copies of layers, and their weights."""

import contextlib
import inspect

import keras
import numpy as np


def copy_layer(layer, /, **changes):
    """Returns a new layer of the same type and settings, without its weights.

    Args:
        layer: Keras layer, or `keras.Operation`.
        **changes: Settings that differ.

    Raises:
        ValueError: If the layer cannot be made again from its settings.
    """
    try:
        config = {**layer.get_config(), **changes}
        with keras.saving.custom_object_scope({**_own_types(layer), **_functions(layer)}):
            if not isinstance(layer, (keras.layers.Lambda, keras.layers.TFSMLayer)):
                return layer.__class__.from_config(config)
            # Its code is here already: there is nothing to be afraid of in loading it.
            serialized = {**keras.saving.serialize_keras_object(layer), "config": config}
            copy = keras.saving.deserialize_keras_object(serialized, safe_mode=False)
        if isinstance(layer, keras.layers.Lambda):
            copy.function = layer.function  # What was loaded does not know the names around it.
        return copy
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        settings = _settings(layer)
        if settings is None:
            raise ValueError(
                f"Layer '{layer.name}' ({type(layer).__name__}) cannot be copied: its `get_config` "
                f"must return the arguments of its constructor. It raised: {error}"
            ) from error
        return type(layer)(**{**settings, **changes})


def _settings(layer):
    """Returns the arguments of a constructor that kept each as an attribute, or `None`.

    Layers whose `get_config` is wrong are made again so; Keras cannot load them either.
    """
    parameters = inspect.signature(type(layer)).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_base = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if not takes_base or not all(hasattr(layer, name) for name in names):
        return None
    base = {"name": layer.name, "dtype": layer.dtype_policy, "trainable": layer.trainable}
    return {**base, **{name: getattr(layer, name) for name in names}}


def _own_types(layer):
    """Returns the user's classes of layers in `layer`, by name: they may not be registered."""
    found, waiting, seen = {}, [layer], set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if type(one).__module__.partition(".")[0] not in ("keras", "tfquant"):
            found[type(one).__name__] = type(one)
        inside = keras.tree.flatten([x for x in vars(one).values() if _may_hold_layers(x)])
        waiting += [x for x in inside if isinstance(x, keras.layers.Layer)]
    return found


def _functions(layer):
    """Returns the user's functions in `layer`, by name: they may not be registered."""
    return {x.__name__: x for x in vars(layer).values() if inspect.isfunction(x)}


def _may_hold_layers(x):
    return isinstance(x, (keras.layers.Layer, list, tuple, dict))


@contextlib.contextmanager
def undrawn(layer):
    """Inside it, `layer` is built with zeros, not with random numbers that nobody will read.

    For a copy that gets its weights from elsewhere. Drawing takes longer than all the rest.
    """
    given = {name: x for name, x in vars(layer).items() if _draws(name, x)}
    if not given or layer.built:
        yield
        return
    try:
        for name in given:
            setattr(layer, name, _Zeros())
        yield
    finally:
        for name, initializer in given.items():
            setattr(layer, name, initializer)


@keras.saving.register_keras_serializable(package="tfquant")
class _Zeros(keras.initializers.Zeros):
    """Makes zeros in NumPy, which takes a fifth of TensorFlow's time for few."""

    def __call__(self, shape, dtype=None):
        if dtype == "bfloat16":  # Not of NumPy's own types.
            return super().__call__(shape, dtype)
        return np.zeros(shape, dtype)


def _draws(name, x):
    return name.endswith("_initializer") and isinstance(x, keras.initializers.Initializer)


def transfer_weights(source, target) -> None:
    """Gives `target`, built, the weights of `source`, a layer of the same settings."""
    target.set_weights(source.get_weights())
    if isinstance(target, keras.layers.Normalization):
        target.finalize_state()  # It computes with what it derived from its weights.
