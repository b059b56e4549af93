"""Plain Keras layers that converters understand, and copies of layers."""
