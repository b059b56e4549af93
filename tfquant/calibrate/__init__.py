"""Post-training quantization: grids from data."""

from tfquant.calibrate.calibrate import calibrate

__all__ = ["calibrate"]
