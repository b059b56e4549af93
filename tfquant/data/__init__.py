"""Batches of the user's data, whatever their form."""
