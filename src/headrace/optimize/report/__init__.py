"""Report of an optimization: data, text and page. Imports no sibling."""

from headrace.optimize.report.data import (
    CandidateReport,
    MeasurementSettings,
    OptimizeReport,
    QualityEvidence,
)
from headrace.optimize.report.html import html_report
from headrace.optimize.report.text import text_report

__all__ = [
    "CandidateReport",
    "MeasurementSettings",
    "OptimizeReport",
    "QualityEvidence",
    "html_report",
    "text_report",
]
