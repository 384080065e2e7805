"""Plan of a rollout: ordered stages with their traffic, and what follows the last.

Blue-green needs no evidence before the switch, so `max_duration_s` does not apply: the preview is
limited by `preview_s` or by manual approval, the time after the switch by `keep_s`.
"""

from dataclasses import dataclass
from typing import Final, assert_never

from headrace.core.spec.rollout import (
    AbSpec,
    BlueGreenSpec,
    CanarySpec,
    CanaryStepSpec,
    RolloutSpec,
    ShadowSpec,
    Until,
)
from headrace.core.text import duration_text, percent_text
from headrace.rollout.state import TrafficShares

_WHOLE: Final = 100
HELD_BACK: Final = TrafficShares(candidate_scale=0.0)
"""Traffic of the old version only, as before the rollout."""


def fair_scale(weight: int) -> float:
    """Return the part of its replicas at which the candidate is no busier than the old version.

    The old version keeps all of its replicas and loses `weight` percent of its requests. If the
    candidate had no more replicas than its share, each of them would process more requests than
    each of the old ones, and its latency would look worse than it is.
    """
    return min(weight / (_WHOLE - weight), 1.0) if weight < _WHOLE else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Traffic that is held for `pause_s` seconds, and until the condition `until` is met."""

    name: str
    """Display name."""
    traffic: TrafficShares
    pause_s: float = 0.0
    until: Until | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """Course of a rollout unless it is stopped."""

    stages: tuple[Stage, ...]

    keep_s: float | None = None
    """Seconds that the old version is kept after the candidate took over; None to stop it at
    once."""

    max_duration_s: float | None = None
    """Time limit of all stages together; None if no evidence is needed."""

    only_reports: bool = False
    """Whether the last stage ends with a report instead of a promotion."""

    def traffic(self, step: int) -> TrafficShares:
        """Return the target of `step`; after the last stage the candidate takes over."""
        if step < len(self.stages):
            return self.stages[step].traffic
        return TrafficShares(candidate=100, has_baseline=self._has_baseline)

    @property
    def start(self) -> TrafficShares:
        """Return the initial traffic: no candidate requests, and the first stage's replicas."""
        return TrafficShares(
            candidate_scale=self.traffic(0).candidate_scale, has_baseline=self._has_baseline
        )

    @property
    def _has_baseline(self) -> bool:
        return any(stage.traffic.has_baseline for stage in self.stages)


def canary_plan(settings: CanarySpec) -> RolloutPlan:
    """Return one stage per step, with ascending weights. Without steps, all requests at once.

    The candidate has so many replicas that it is no busier than the old version. With `baseline` it
    has as many as its share of the requests needs, and fresh copies of the old version get the same
    share: both are equally cold and equally busy.
    """
    steps = settings.steps or (CanaryStepSpec(weight=50 if settings.baseline else 100),)
    stages = (
        _stage(settings, step, f"step {number} of {len(steps)} ({step.weight} % of the requests)")
        for number, step in enumerate(steps, start=1)
    )
    return RolloutPlan(stages=tuple(stages), max_duration_s=settings.max_duration_s)


def _stage(settings: CanarySpec, step: CanaryStepSpec, name: str) -> Stage:
    traffic = TrafficShares(
        candidate=step.weight,
        baseline=step.weight if settings.baseline else 0,
        candidate_scale=step.weight / 100 if settings.baseline else fair_scale(step.weight),
        has_baseline=settings.baseline,
    )
    return Stage(name=name, traffic=traffic, pause_s=step.pause_s, until=step.until)


def blue_green_plan(settings: BlueGreenSpec) -> RolloutPlan:
    """Return one stage without a request of the split, then the switch."""
    stage = Stage(
        name="preview (no requests but those that name the version)",
        traffic=TrafficShares(),
        pause_s=settings.preview_s,
        until="approval" if settings.approval else None,
    )
    return RolloutPlan(stages=(stage,), keep_s=settings.keep_s)


def judgement_text(settings: BlueGreenSpec) -> str:
    """Return the display text of what rolls a version back after the switch."""
    errors, latency = settings.metrics.errors, settings.metrics.latency
    limits = []
    if errors is not None and errors.max_ratio is not None:
        limits.append(f"more than {percent_text(errors.max_ratio)} of its requests fail")
    if latency is not None and latency.max_s is not None:
        quantile = f"p{100 * latency.quantile:g}"
        limits.append(f"its {quantile} is above {duration_text(latency.max_s)}")
    if not settings.keep_s:
        return "nothing is judged after the switch, as keep_s is 0"
    period = f"for {duration_text(settings.keep_s)} after the switch"
    if not limits:
        return f"{period} nothing is judged: only a version that dies goes back by itself"
    return f"{period} it goes back if {' or '.join(limits)}; nothing else is judged"


def ab_plan(settings: AbSpec) -> RolloutPlan:
    """Return one stage of constant weight, until the verdict."""
    traffic = TrafficShares(candidate=settings.weight, candidate_scale=fair_scale(settings.weight))
    stage = Stage(
        name=f"A/B test ({settings.weight} % of the callers)", traffic=traffic, until="verdict"
    )
    return RolloutPlan(stages=(stage,), max_duration_s=settings.max_duration_s)


def shadow_plan(settings: ShadowSpec) -> RolloutPlan:
    """Return one stage in which no caller gets the candidate's responses, until the verdict."""
    percent = settings.mirror_percent
    traffic = TrafficShares(mirror_percent=percent, candidate_scale=percent / 100)
    stage = Stage(
        name=f"shadow (copies of {percent} % of the requests)", traffic=traffic, until="verdict"
    )
    return RolloutPlan(
        stages=(stage,),
        max_duration_s=settings.max_duration_s,
        only_reports=not settings.promotes,
    )


def plan_of(settings: RolloutSpec) -> RolloutPlan:
    """Return the stages of `settings`, and what follows them."""
    match settings:
        case CanarySpec():
            return canary_plan(settings)
        case BlueGreenSpec():
            return blue_green_plan(settings)
        case AbSpec():
            return ab_plan(settings)
        case ShadowSpec():
            return shadow_plan(settings)
        case _:
            assert_never(settings)
