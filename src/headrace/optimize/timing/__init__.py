"""How much faster is one way to run a model than another, on a machine that is not quiet?"""

from headrace.optimize.timing.cpu import CpuWatch, ProcStat
from headrace.optimize.timing.evict import Eviction, eviction
from headrace.optimize.timing.measure import measure
from headrace.optimize.timing.summary import Timing, summarize
from headrace.optimize.timing.window import Contender, TimingSettings, Window, failures

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
