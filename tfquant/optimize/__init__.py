"""Integers chosen on data: better ones than the nearest, in the same file."""

from tfquant.optimize.adaround import BRECQ, AdaRound
from tfquant.optimize.algorithm import ALGORITHMS, Algorithm
from tfquant.optimize.codebook import Codebook
from tfquant.optimize.effort import EFFORTS, quantize
from tfquant.optimize.gptq import GPTQ
from tfquant.optimize.optimize import optimize
from tfquant.optimize.oscar import Oscar
from tfquant.optimize.scale import AWQ, Equalize, SmoothQuant

__all__ = [
    "ALGORITHMS",
    "AWQ",
    "BRECQ",
    "EFFORTS",
    "GPTQ",
    "AdaRound",
    "Algorithm",
    "Codebook",
    "Equalize",
    "Oscar",
    "SmoothQuant",
    "optimize",
    "quantize",
]
