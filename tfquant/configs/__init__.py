"""How layers are quantized: which weights and outputs, and how the device computes them."""
