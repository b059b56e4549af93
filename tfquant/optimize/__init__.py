"""Integers chosen on data: better ones than the nearest, in the same file."""

from tfquant.optimize.algorithm import ALGORITHMS, Algorithm
from tfquant.optimize.gptq import GPTQ
from tfquant.optimize.optimize import optimize

__all__ = ["ALGORITHMS", "GPTQ", "Algorithm", "optimize"]
