"""Status and evidence documents of a rollout, for people, scripts and CI. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, TypeVar

from headrace.control.model.desired import DesiredArm, DesiredEndpoint
from headrace.control.model.records import RolloutRecord
from headrace.core.spec.rollout import (
    BlueGreenSpec,
    CanarySpec,
)
from headrace.rollout.outcomes import RolloutVerdict
from headrace.rollout.outlook import Outlook
from headrace.rollout.sequences import Sequences
from headrace.rollout.stages import judgement_text

Shown = TypeVar("Shown", "StepStatus", "MetricStatus", "OutlookStatus", "IntervalPoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStatus:
    """One step of a canary: its weight in percent, and its end condition."""

    weight: int
    pause_s: float
    until: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricStatus:
    """One metric of a verdict.

    It has both arms' numbers, the candidate's difference (`effect`, in `unit`), its bounds `low`
    and `high`, each valid at all times simultaneously with probability 1 - `alpha` or more, the
    tolerated `margin`, and the samples of baseline and candidate. Null: unknown, or no bound.
    """

    metric: str
    outcome: str
    reason: str
    unit: str
    baseline: float | None
    candidate: float | None
    effect: float | None
    low: float | None
    high: float | None
    margin: float | None
    alpha: float
    samples: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictStatus:
    """The newest verdict (`promote`, `roll_back` or `wait`), its time and reason."""

    outcome: str
    at: float
    explanation: str
    metrics: tuple[MetricStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRequests:
    """Requests that each side of the comparison has answered so far."""

    baseline: int = 0
    candidate: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlookStatus:
    """Expected seconds until a decision at the present rate of requests; null for never."""

    requests_per_s: float
    good_s: float | None
    """Seconds until a version as good as the old one has passed all steps."""
    worse_s: float | None
    """Seconds until a version worse by twice the margin is rolled back."""
    max_duration_s: float
    suffices: bool
    """Whether `good_s` is within `max_duration_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStatus:
    """One rollout: its old and new versions and its progress.

    Times are seconds since 1970, weights percent. `step` counts from 0 and points into `steps`,
    which only a canary has. `weight` is the new version's share now, `baseline_weight` that of
    new replicas of the old one.
    """

    id: str
    endpoint: str
    strategy: str
    phase: str
    over: bool
    """Whether it has ended; only a command of a user changes it."""
    from_version: str
    to_version: str
    from_model: str
    to_model: str
    weight: int
    baseline_weight: int
    mirror_percent: int
    step: int
    steps: tuple[StepStatus, ...]
    began: float
    since: float
    """Time at which `phase` began."""
    duration_s: float
    """Seconds for which it was observed until now or its end. `requests` are the compared ones;
    `counted` has all counts, such as pairs of answers and disagreements.
    """
    reason: str
    actor: str
    verdict: VerdictStatus | None
    requests: ArmRequests
    counted: Mapping[str, float]
    outlook: OutlookStatus | None = None
    """Estimated time to a verdict; null if none is pending or it cannot be estimated."""
    notes: tuple[str, ...] = ()
    """The outlook as text, and consequences of the settings that are easily overlooked."""
    problem: str = ""
    """Error that keeps it from advancing; empty if there is none."""


def rollout_status(
    record: RolloutRecord,
    *,
    counted: Mapping[str, float] | None = None,
    expected: Outlook | None = None,
    problem: str = "",
) -> RolloutStatus:
    """Return the status document of `record`.

    Args:
        counted: The result of `Evidence.summary`; if empty or None, the verdict's samples count as
            the requests.
        expected: The outlook at the present rate of requests.
        problem: The result of `RolloutDriver.problem`.
    """
    state = record.state
    old, new = _main_arm(record.source), _new_arm(record.source, record.target)
    steps = state.settings.steps if isinstance(state.settings, CanarySpec) else ()
    notes = () if expected is None else (expected.text,)
    if isinstance(state.settings, BlueGreenSpec):
        notes = (judgement_text(state.settings),)
    return RolloutStatus(
        id=record.id,
        endpoint=record.endpoint,
        strategy=state.settings.strategy,
        phase=state.phase.value,
        over=state.phase.is_over,
        from_version=old.revision.version if old else "",
        to_version=new.revision.version if new else "",
        from_model=old.revision.model if old else "",
        to_model=new.revision.model if new else "",
        weight=state.traffic.candidate,
        baseline_weight=state.traffic.baseline,
        mirror_percent=state.traffic.mirror_percent,
        step=state.step,
        steps=tuple(_display(StepStatus, step) for step in steps),
        began=state.began,
        since=state.since,
        duration_s=state.elapsed_s,
        reason=state.reason,
        actor=record.actor,
        verdict=None if state.verdict is None else _verdict(state.verdict),
        requests=_requests(state.verdict, counted or {}),
        counted={name: value for name, value in (counted or {}).items() if math.isfinite(value)},
        outlook=None if expected is None else outlook_status(expected),
        notes=notes,
        problem=problem,
    )


def outlook_status(expected: Outlook) -> OutlookStatus:
    """Return the document of an outlook."""
    return _display(OutlookStatus, expected)


def _display(kind: type[Shown], source: object) -> Shown:
    """Return the fields of `source` that a document has, without infinite numbers for JSON."""
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(kind)):
        value = getattr(source, name)
        is_infinite = isinstance(value, float) and not math.isfinite(value)
        values[name] = None if is_infinite else value.value if isinstance(value, Enum) else value
    return kind(**values)


def _main_arm(endpoint: DesiredEndpoint) -> DesiredArm | None:
    """Return the arm with the largest weight; the first of equals."""
    return max(endpoint.arms, key=lambda arm: arm.weight, default=None)


def _new_arm(source: DesiredEndpoint, target: DesiredEndpoint) -> DesiredArm | None:
    """Return the arm that `source` does not have; the main one if it has all."""
    revision_ids = {arm.revision.id for arm in source.arms}
    new = next((arm for arm in target.arms if arm.revision.id not in revision_ids), None)
    return new or _main_arm(target)


def _verdict(verdict: RolloutVerdict) -> VerdictStatus:
    return VerdictStatus(
        outcome=verdict.outcome.value,
        at=verdict.at,
        explanation=verdict.explanation,
        metrics=tuple(_display(MetricStatus, metric) for metric in verdict.metrics),
    )


def _requests(verdict: RolloutVerdict | None, counted: Mapping[str, float]) -> ArmRequests:
    if "candidate_requests" in counted:
        return ArmRequests(
            baseline=int(counted["baseline_requests"]), candidate=int(counted["candidate_requests"])
        )
    samples = [metric.samples for metric in verdict.metrics] if verdict else []
    return ArmRequests(
        baseline=max((baseline for baseline, _ in samples), default=0),
        candidate=max((candidate for _, candidate in samples), default=0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalPoint:
    """A metric's numbers at one time: `at` in seconds since 1970, the rest in the metric's unit.

    The numbers are those of `MetricStatus`. Null: unknown then, or no bound.
    """

    at: float
    effect: float | None
    low: float | None
    high: float | None
    margin: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceView:
    """A metric's confidence sequence, the oldest point first.

    `low` and `high` of all points are valid simultaneously with the confidence of the rollout's
    verdict. A metric decided by a fixed threshold is listed twice, in two units.
    """

    metric: str
    unit: str
    points: tuple[IntervalPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutEvidence:
    """A rollout's metrics over its life.

    At most 120 points per metric, at least `step_s` seconds apart; the newest may be closer.
    """

    id: str
    endpoint: str
    step_s: float
    metrics: tuple[SequenceView, ...]


def rollout_evidence(record: RolloutRecord, sequences: Sequences) -> RolloutEvidence:
    """Return the document of a rollout's confidence sequences."""
    return RolloutEvidence(
        id=record.id,
        endpoint=record.endpoint,
        step_s=sequences.step_s,
        metrics=tuple(
            SequenceView(
                metric=metric.metric,
                unit=metric.unit,
                points=tuple(_display(IntervalPoint, point) for point in sequences.points(metric)),
            )
            for metric in sequences.metrics
        ),
    )
