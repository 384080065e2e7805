"""Comparison of ways to run a model on a machine that others use too."""

from headrace.optimize.timing.cpu import CpuWatch, Eviction, ProcStat, eviction
from headrace.optimize.timing.measure import Contender, TimingSettings, Window, failures, measure
from headrace.optimize.timing.summary import Timing, summarize

__all__ = [
    "Contender",
    "CpuWatch",
    "Eviction",
    "ProcStat",
    "Timing",
    "TimingSettings",
    "Window",
    "eviction",
    "failures",
    "measure",
    "summarize",
]
