"""Integers chosen on data: better ones than the nearest, in the same file."""

from tfquant.optimize.adaround import BRECQ, AdaRound
from tfquant.optimize.algorithm import ALGORITHMS, Algorithm
from tfquant.optimize.codebook import Codebook
from tfquant.optimize.effort import EFFORTS, quantize
from tfquant.optimize.gptq import GPTQ
from tfquant.optimize.optimize import optimize

__all__ = [
    "ALGORITHMS",
    "BRECQ",
    "EFFORTS",
    "GPTQ",
    "AdaRound",
    "Algorithm",
    "Codebook",
    "optimize",
    "quantize",
]
