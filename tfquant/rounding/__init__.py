"""Integers that serve a layer's outputs: arithmetic on arrays, without a model."""
