"""What does a shadow do? It gets copies of requests, and its answers are compared and dropped."""

from headrace.core.spec_rollout import ShadowSpec
from headrace.rollout.stages import Plan, Stage
from headrace.rollout.state import Traffic


def shadow_plan(settings: ShadowSpec) -> Plan:
    """One stage in which no caller sees the candidate, until the verdict."""
    percent = settings.mirror_percent
    traffic = Traffic(mirror_percent=percent, candidate_scale=percent / 100)
    stage = Stage(
        name=f"shadow (copies of {percent} % of the requests)", traffic=traffic, until="verdict"
    )
    return Plan(
        stages=(stage,),
        max_duration_s=settings.max_duration_s,
        only_reports=not settings.promotes,
    )
