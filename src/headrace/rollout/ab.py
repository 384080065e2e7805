"""What does an A/B test do? Each caller is on one of two versions until the reward has decided."""

from headrace.core.spec_rollout import AbSpec
from headrace.rollout.stages import Plan, Stage, fair_scale
from headrace.rollout.state import Traffic


def ab_plan(settings: AbSpec) -> Plan:
    """One stage of constant weight, until the verdict."""
    traffic = Traffic(candidate=settings.weight, candidate_scale=fair_scale(settings.weight))
    stage = Stage(
        name=f"A/B test ({settings.weight} % of the callers)", traffic=traffic, until="verdict"
    )
    return Plan(stages=(stage,), max_duration_s=settings.max_duration_s)
