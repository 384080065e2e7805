"""What is remembered of a running system and judged about it, as pure functions of time."""

from headrace.monitor.history import Buckets, History, Totals, Window
from headrace.monitor.load import LoadHistory, LoadReading, LoadTotals, LoadWindow

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
