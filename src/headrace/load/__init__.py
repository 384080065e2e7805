"""Open-loop load: requests leave at times that no answer can change."""

from headrace.load.intervals import Interval
from headrace.load.plan import Arrivals, LoadPlan, check_plan
from headrace.load.run import Tick, run_load
from headrace.load.summary import (
    Judgement,
    LoadResult,
    Objective,
    Verdict,
    parse_objectives,
    summarize,
)
from headrace.load.target import Asker, Target, open_target

__all__ = [
    "Arrivals",
    "Asker",
    "Interval",
    "Judgement",
    "LoadPlan",
    "LoadResult",
    "Objective",
    "Target",
    "Tick",
    "Verdict",
    "check_plan",
    "open_target",
    "parse_objectives",
    "run_load",
    "summarize",
]
