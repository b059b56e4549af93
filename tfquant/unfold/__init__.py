"""Layers taken apart into layers that have a kernel each."""
