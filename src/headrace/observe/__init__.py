"""Counters, histograms, metrics, spans and logs of every process."""

from headrace.observe.histogram import (
    BRIEF_PLACES,
    BRIEF_TWO_DIGITS_S,
    FINE_S,
    ROWS_BOUNDS,
    SECONDS_BOUNDS,
    TWO_DIGITS_S,
    Exemplars,
    Histogram,
    told,
)
from headrace.observe.logs import LogFormat, configure_logging
from headrace.observe.statistics import (
    BatchStatistics,
    Duration,
    ModelStatistics,
    PhaseHistograms,
)

__all__ = [
    "BRIEF_PLACES",
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
    "told",
]
