"""Objects that hold the state of a grid and map real values onto it."""

from tfquant.quantizers.abs_max import AbsMax
from tfquant.quantizers.base import Quantizer, RecordingScope
from tfquant.quantizers.dynamic import Dynamic
from tfquant.quantizers.fixed import Fixed
from tfquant.quantizers.float16 import Float16
from tfquant.quantizers.grid import Grid, grid_of, on_grid
from tfquant.quantizers.static import Static

__all__ = [
    "AbsMax",
    "Dynamic",
    "Fixed",
    "Float16",
    "Grid",
    "Quantizer",
    "RecordingScope",
    "Static",
    "grid_of",
    "on_grid",
]
