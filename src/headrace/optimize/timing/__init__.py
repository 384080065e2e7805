"""Timing comparisons on a shared machine. Imports no sibling."""

from headrace.optimize.timing.cpu import CpuWatch, Eviction, ProcStat, eviction
from headrace.optimize.timing.measure import (
    CallWindow,
    TimedCandidate,
    TimingSettings,
    failures,
    measure,
)
from headrace.optimize.timing.summary import Timing, summarize

__all__ = [
    "CallWindow",
    "CpuWatch",
    "Eviction",
    "ProcStat",
    "TimedCandidate",
    "Timing",
    "TimingSettings",
    "eviction",
    "failures",
    "measure",
    "summarize",
]
