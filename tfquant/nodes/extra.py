"""The packages of the extra `tfquant[onnx]`, imported where somebody asks for a file."""

import importlib

EXTRA = "onnx", "onnxruntime"


def load() -> tuple:
    """Returns the modules `onnx` and `onnxruntime`.

    Raises:
        ImportError: If one is missing.
    """
    found = []
    for name in EXTRA:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            raise ImportError(
                "ONNX files need the packages onnx and onnxruntime: pip install 'tfquant[onnx]'. "
                f"Received: {error}"
            ) from error
    return tuple(found)


def check() -> None:
    """Raises if the packages are not there, before anybody waits for what needs them.

    Raises:
        ImportError: If one is missing.
    """
    load()
