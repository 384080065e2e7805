"""How code counts, times and logs."""

from headrace.observe.bounds import BRIEF_PLACES, BRIEF_TWO_DIGITS_S, FINE_S, TWO_DIGITS_S, told
from headrace.observe.exemplars import Exemplars
from headrace.observe.histogram import ROWS_BOUNDS, SECONDS_BOUNDS, Histogram
from headrace.observe.logs import LogFormat, configure_logging
from headrace.observe.phases import PhaseHistograms
from headrace.observe.statistics import BatchStatistics, Duration, ModelStatistics

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
