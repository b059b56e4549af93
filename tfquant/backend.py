"""Refuses a Keras that computes with anything but TensorFlow, when tfquant is imported."""

import os
import sys

NEEDED = "tensorflow"


def check() -> None:
    """Checks which backend Keras has.

    Raises:
        ImportError: If it is another than TensorFlow.
    """
    named = os.environ.get("KERAS_BACKEND") or NEEDED
    found = f"backend '{named}'"
    if "keras" in sys.modules or named == NEEDED:
        found = _backend_of_keras()
    if found != f"backend '{NEEDED}'":
        raise ImportError(
            f"tfquant needs Keras on TensorFlow: set KERAS_BACKEND={NEEDED}, or that backend in "
            f"~/.keras/keras.json, before keras is imported. Received: {found}"
        )


def _backend_of_keras():
    """The backend in words, or the module for want of which Keras cannot be imported."""
    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name not in ("jax", "mlx", "openvino", "torch"):
            raise
        return f"a backend that needs '{error.name}'"
    return f"backend '{keras.backend.backend()}'"


check()
