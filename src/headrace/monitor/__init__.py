"""What is remembered of a running system and judged about it, as pure functions of time."""

from headrace.monitor.history import History
from headrace.monitor.load import LoadHistory, LoadReading, LoadTotals, LoadWindow
from headrace.monitor.request_counts import Buckets, Totals, Window

__all__ = [
    "Buckets",
    "History",
    "LoadHistory",
    "LoadReading",
    "LoadTotals",
    "LoadWindow",
    "Totals",
    "Window",
]
