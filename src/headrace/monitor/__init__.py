"""What is remembered of a running system and judged about it, as pure functions of time."""

from headrace.monitor.buckets import Buckets
from headrace.monitor.history import History
from headrace.monitor.load import LoadHistory, LoadWindow
from headrace.monitor.load_track import LoadReading, LoadTotals
from headrace.monitor.window import Totals, Window

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
