"""History, alerts, SLOs and drift, as pure functions. Imports `scoring` and below."""

from headrace.monitor.history import Buckets, CounterTotals, RequestHistory, RequestWindow
from headrace.monitor.load import LoadHistory, LoadReading, LoadTotals, LoadWindow

__all__ = [
    "Buckets",
    "CounterTotals",
    "LoadHistory",
    "LoadReading",
    "LoadTotals",
    "LoadWindow",
    "RequestHistory",
    "RequestWindow",
]
