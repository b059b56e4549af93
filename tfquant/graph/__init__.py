"""A model as the calls of its layers."""
