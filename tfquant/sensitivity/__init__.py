"""Which layer hurts, at which width, and what would help."""

from tfquant.sensitivity.advice import Advice
from tfquant.sensitivity.report import LayerSensitivity, Sensitivity
from tfquant.sensitivity.scoring import Scoring, outputs_of
from tfquant.sensitivity.sensitivity import MODES, measure, sensitivity
from tfquant.sensitivity.study import LARGEST, Progressing, Study, check_effort, showing

__all__ = [
    "LARGEST",
    "MODES",
    "Advice",
    "LayerSensitivity",
    "Progressing",
    "Scoring",
    "Sensitivity",
    "Study",
    "check_effort",
    "measure",
    "outputs_of",
    "sensitivity",
    "showing",
]
