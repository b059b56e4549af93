"""Keras layers whose weights are packed bits, made from integers and scales.

Each has the shape rules of the Keras layer it stands for, does not train its weights, saves as
`.keras` and as a SavedModel, and is made by `from_integers`. They run as TensorFlow ops, without
XLA (`supports_jit` is false, so that Keras does not try).
"""

from tfquant.lowbit.layers.conv import PackedConv
from tfquant.lowbit.layers.dense import PackedDense
from tfquant.lowbit.layers.embedding import PackedEmbedding
from tfquant.lowbit.layers.layer import PackedLayer

__all__ = ["PackedConv", "PackedDense", "PackedEmbedding", "PackedLayer"]
