"""What a conversion did, as plain objects, JSON and tables."""

from tfquant.report.conversion import (
    ConversionReport,
    FloatOperator,
    LayerReport,
    Parity,
)

__all__ = ["ConversionReport", "FloatOperator", "LayerReport", "Parity"]
