"""Quantized models to files."""
