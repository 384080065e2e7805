"""How code counts, times and logs."""

from headrace.observe.logs import LogFormat, configure_logging
from headrace.observe.statistics import BatchStatistics, Duration, ModelStatistics

__all__ = ["BatchStatistics", "Duration", "LogFormat", "ModelStatistics", "configure_logging"]
