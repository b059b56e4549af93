"""Objects that hold the state of a grid and map real values onto it."""

from tfquant.quantizers.abs_max import AbsMax
from tfquant.quantizers.base import Quantizer, RecordingScope
from tfquant.quantizers.dynamic import Dynamic
from tfquant.quantizers.fixed import Fixed
from tfquant.quantizers.float16 import Float16
from tfquant.quantizers.grid import Grid, from_steps, grid_of, on_grid, steps_of
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
    "from_steps",
    "grid_of",
    "on_grid",
    "steps_of",
]
