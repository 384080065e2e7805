"""What is remembered of a running system and judged about it, as pure functions of time."""

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
