"""tfquant: from any Keras 3 model to a small, fast, verified integer model."""
