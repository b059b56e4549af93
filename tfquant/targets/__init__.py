"""What hardware and runtimes take of a file."""

from tfquant.targets.check import (
    ALIASES,
    ONNXRUNTIME,
    TARGETS,
    CheckReport,
    OperatorCheck,
    check,
)

__all__ = ["ALIASES", "ONNXRUNTIME", "TARGETS", "CheckReport", "OperatorCheck", "check"]
