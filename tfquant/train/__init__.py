"""Quantization-aware training: schedules as Keras callbacks, and distillation."""

from tfquant.train.distill import distill
from tfquant.train.finetune import Finetuning, finetune
from tfquant.train.oscillation import DampenOscillation, FreezeOscillation
from tfquant.train.schedules import (
    FloatWarmup,
    FreezeBatchNorm,
    FreezeRanges,
    PrecisionSchedule,
)
from tfquant.train.terminate import TerminateOnNaN

__all__ = [
    "DampenOscillation",
    "Finetuning",
    "FloatWarmup",
    "FreezeBatchNorm",
    "FreezeOscillation",
    "FreezeRanges",
    "PrecisionSchedule",
    "TerminateOnNaN",
    "distill",
    "finetune",
]
