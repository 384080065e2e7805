"""Counters, histograms, metrics, spans and logs. Imports `core` and below."""

from headrace.observe.histogram import (
    BRIEF_INDEXES,
    BRIEF_TWO_DIGITS_S,
    FINE_S,
    ROWS_BOUNDS,
    SECONDS_BOUNDS,
    TWO_DIGITS_S,
    BatchStatistics,
    Duration,
    Exemplars,
    Histogram,
    ModelStatistics,
    PhaseHistograms,
    reported_indexes,
)
from headrace.observe.logs import LogFormat, configure_logging

__all__ = [
    "BRIEF_INDEXES",
    "BRIEF_TWO_DIGITS_S",
    "FINE_S",
    "ROWS_BOUNDS",
    "SECONDS_BOUNDS",
    "TWO_DIGITS_S",
    "BatchStatistics",
    "Duration",
    "Exemplars",
    "Histogram",
    "LogFormat",
    "ModelStatistics",
    "PhaseHistograms",
    "configure_logging",
    "reported_indexes",
]
