"""History, alerts and drift of a running system, as pure functions of time."""

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
