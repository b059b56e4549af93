"""A file as source for microcontrollers."""

from tfquant.c.export import ExportReport, export_c

__all__ = ["ExportReport", "export_c"]
