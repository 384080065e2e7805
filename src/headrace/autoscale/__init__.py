"""Replica counts from signals, as pure functions. Imports `scoring` and below."""

from headrace.autoscale.budget import ReplicaGrant, ReplicaRequest, share_out
from headrace.autoscale.decide import ScaleDecision, decide
from headrace.autoscale.meter import IntervalCounts, Meter
from headrace.autoscale.recommend import ReplicaUsage, ResourceRecommendation, recommend
from headrace.autoscale.state import ScaleReason, ScalerState, Signals, begin, granted

__all__ = [
    "IntervalCounts",
    "Meter",
    "ReplicaGrant",
    "ReplicaRequest",
    "ReplicaUsage",
    "ResourceRecommendation",
    "ScaleDecision",
    "ScaleReason",
    "ScalerState",
    "Signals",
    "begin",
    "decide",
    "granted",
    "recommend",
    "share_out",
]
