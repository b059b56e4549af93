"""Where `pip install` puts the compiled ops."""
