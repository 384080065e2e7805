"""Replica counts from signals, as pure functions."""

from headrace.autoscale.budget import Ask, Grant, share_out
from headrace.autoscale.decide import Decision, decide
from headrace.autoscale.meter import Counts, Meter
from headrace.autoscale.recommend import Observed, Recommendation, recommend
from headrace.autoscale.state import Reason, ScalerState, Signals, begin, granted

__all__ = [
    "Ask",
    "Counts",
    "Decision",
    "Grant",
    "Meter",
    "Observed",
    "Reason",
    "Recommendation",
    "ScalerState",
    "Signals",
    "begin",
    "decide",
    "granted",
    "recommend",
    "share_out",
]
