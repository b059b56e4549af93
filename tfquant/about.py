"""What the package says of itself.

`pyproject.toml` and `tfquant_cli.py` read it as it stands and import nothing for it.
"""

__version__ = "0.1.0"
