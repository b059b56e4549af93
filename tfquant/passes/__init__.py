"""Graph in, graph out, with the same outputs."""
