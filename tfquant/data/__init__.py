"""Batches of the user's data, whatever their form; files that appear when they are complete."""
