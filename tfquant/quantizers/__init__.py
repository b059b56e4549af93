"""Objects that hold the state of a grid and map real values onto it."""

from tfquant.quantizers.abs_max import AbsMax
from tfquant.quantizers.base import Quantizer, RealScope, RecordingScope
from tfquant.quantizers.dorefa import DoReFa
from tfquant.quantizers.dynamic import Dynamic
from tfquant.quantizers.families import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from tfquant.quantizers.fixed import Fixed
from tfquant.quantizers.float16 import Float16
from tfquant.quantizers.grid import STORED, Grid, from_steps, grid_of, on_grid, round_to, steps_of
from tfquant.quantizers.learned_clip import LearnedClip
from tfquant.quantizers.learned_step import LearnedStep, LearnedStepActivation
from tfquant.quantizers.learned_threshold import LearnedThreshold, LearnedThresholdActivation
from tfquant.quantizers.moving_average import MovingAverage
from tfquant.quantizers.softmax_input import MaskInput, SoftmaxInput
from tfquant.quantizers.static import Static
from tfquant.quantizers.watch import Watch
from tfquant.quantizers.weight import WeightQuantizer
from tfquant.quantizers.weight_only import QuantizedArray, WeightOnlyQuantizer

__all__ = [
    "ACTIVATION_QUANTIZERS",
    "STORED",
    "WEIGHT_QUANTIZERS",
    "AbsMax",
    "DoReFa",
    "Dynamic",
    "Fixed",
    "Float16",
    "Grid",
    "LearnedClip",
    "LearnedStep",
    "LearnedStepActivation",
    "LearnedThreshold",
    "LearnedThresholdActivation",
    "MaskInput",
    "MovingAverage",
    "QuantizedArray",
    "Quantizer",
    "RealScope",
    "RecordingScope",
    "SoftmaxInput",
    "Static",
    "Watch",
    "WeightOnlyQuantizer",
    "WeightQuantizer",
    "from_steps",
    "grid_of",
    "on_grid",
    "round_to",
    "steps_of",
]
