"""Recurrent layers, unrolled into the kernels of every time step."""
