"""The float file of a model, without its weights, and which tensor of it is which activation."""
