"""Observers: they watch the values of a tensor and yield the range its grid should cover."""

from collections.abc import Callable

from tfquant.observers.auto import Auto
from tfquant.observers.base import Observer, Summary
from tfquant.observers.entropy import Entropy
from tfquant.observers.mean_squared_error import MeanSquaredError
from tfquant.observers.min_max import MinMax
from tfquant.observers.moving_average import MovingAverage
from tfquant.observers.percentile import Percentile

__all__ = [
    "OBSERVERS",
    "Auto",
    "Entropy",
    "MeanSquaredError",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Summary",
    "get",
]

OBSERVERS = {
    "min_max": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mean_squared_error": MeanSquaredError,
    "entropy": Entropy,
    "auto": Auto,
}


def get(identifier: str | Callable[[], Observer]) -> Observer:
    """Returns a new observer; call it once for each tensor.

    Args:
        identifier: An alias of `OBSERVERS`, an observer class, or a function without arguments
            that returns a new observer.

    Returns:
        An `Observer` that has seen nothing.

    Raises:
        ValueError: If `identifier` is none of these.

    Example:

    >>> get("percentile").percentile
    99.99
    >>> get(lambda: Percentile(99.9)).percentile
    99.9
    """
    factory = OBSERVERS.get(identifier) if isinstance(identifier, str) else identifier
    observer = factory() if callable(factory) else None
    if not isinstance(observer, Observer):
        raise ValueError(
            f"An observer must be one of {', '.join(map(repr, OBSERVERS))}, a subclass of "
            "`Observer`, or a function without arguments that returns one. "
            f"Received: {identifier!r}."
        )
    return observer
