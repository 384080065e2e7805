"""What an optimization found: as data, at a terminal, as a page."""

from headrace.optimize.report.data import CandidateReport, Circumstances, Evidence, OptimizeReport
from headrace.optimize.report.html import html_report
from headrace.optimize.report.text import text_report

__all__ = [
    "CandidateReport",
    "Circumstances",
    "Evidence",
    "OptimizeReport",
    "html_report",
    "text_report",
]
