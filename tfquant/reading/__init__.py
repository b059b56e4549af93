"""What the calls of layers consist of."""
