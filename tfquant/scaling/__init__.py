"""Channels scaled between layers, with the same outputs: weights that few bits hold better."""

from tfquant.scaling.awq import search
from tfquant.scaling.equalize import equalize
from tfquant.scaling.pairs import Pair, look, pairs_of, rescale
from tfquant.scaling.smooth import smooth

__all__ = ["Pair", "equalize", "look", "pairs_of", "rescale", "search", "smooth"]
