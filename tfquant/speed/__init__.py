"""How fast files are."""

from tfquant.speed.benchmark import benchmark

__all__ = ["benchmark"]
