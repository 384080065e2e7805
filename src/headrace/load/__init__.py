"""Open-loop load generator. Imports `client` and below."""

from headrace.load.intervals import ConfidenceInterval
from headrace.load.plan import ArrivalProcess, LoadPlan, check_plan
from headrace.load.run import RunTick, run_load
from headrace.load.summary import (
    Judgement,
    LoadObjective,
    LoadResult,
    ObjectiveVerdict,
    parse_objectives,
    summarize,
)
from headrace.load.target import LoadTarget, TargetProbe, open_target

__all__ = [
    "ArrivalProcess",
    "ConfidenceInterval",
    "Judgement",
    "LoadObjective",
    "LoadPlan",
    "LoadResult",
    "LoadTarget",
    "ObjectiveVerdict",
    "RunTick",
    "TargetProbe",
    "check_plan",
    "open_target",
    "parse_objectives",
    "run_load",
    "summarize",
]
