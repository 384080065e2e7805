"""What does a canary do? It gives the new version a share that grows from step to step."""

from headrace.core.spec_rollout import CanarySpec, CanaryStepSpec
from headrace.rollout.stages import Plan, Stage, fair_scale
from headrace.rollout.state import Traffic


def canary_plan(settings: CanarySpec) -> Plan:
    """One stage per step; weights never go down, as the spec makes sure. No steps: all at once.

    The candidate has so many replicas that it is no busier than the old version. With `baseline`
    it has as many as its share of the requests needs, and fresh copies of the old version get the
    same share: both are equally cold and equally busy.
    """
    steps = settings.steps or (CanaryStepSpec(weight=50 if settings.baseline else 100),)
    stages = (
        _stage(settings, step, f"step {number} of {len(steps)} ({step.weight} % of the requests)")
        for number, step in enumerate(steps, start=1)
    )
    return Plan(stages=tuple(stages), max_duration_s=settings.max_duration_s)


def _stage(settings: CanarySpec, step: CanaryStepSpec, name: str) -> Stage:
    traffic = Traffic(
        candidate=step.weight,
        baseline=step.weight if settings.baseline else 0,
        candidate_scale=step.weight / 100 if settings.baseline else fair_scale(step.weight),
        has_baseline=settings.baseline,
    )
    return Stage(name=name, traffic=traffic, pause_s=step.pause_s, until=step.until)
