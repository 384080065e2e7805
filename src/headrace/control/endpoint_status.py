"""What is true of an endpoint now, as conditions that people and programs can wait for?

The words are Kubernetes': a type, `True` or `False`, one CamelCase reason, a message, and since
when it is so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from headrace.control.state.records import RolloutRecord
from headrace.control.status import EndpointStatus
from headrace.observe.row_checks import BatchingReport
from headrace.rollout.state import Phase


class ConditionType(StrEnum):
    """What a condition speaks of."""

    READY = "Ready"
    """Every version that gets requests can answer them."""
    PROGRESSING = "Progressing"
    """A rollout is on its way."""
    ROLLED_BACK = "RolledBack"
    """The newest rollout was taken back: what the spec says is held back until the next change."""
    SCALED = "Scaled"
    """As many replicas are ready as there should be."""
    ANSWERS_INDEPENDENT = "AnswersIndependent"
    """No answer depends on another caller's request, as far as is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One fact; `since`: seconds since 1970 of its last change of `status` or `reason`."""

    type: str
    status: bool
    reason: str
    message: str
    since: float


def conditions_of(
    endpoint: EndpointStatus, rollout: RolloutRecord | None, *, now: float
) -> tuple[Condition, ...]:
    """All conditions of an endpoint; what has no time of its own is since `now`.

    Args:
        rollout: The newest one, if there ever was one.
    """
    return (
        _ready(endpoint, now),
        _progressing(rollout, now),
        _rolled_back(rollout, now),
        _scaled(endpoint, now),
        _independent(endpoint, now),
    )


@dataclass(slots=True)
class ConditionLog:
    """Remembers since when conditions are what they are; of the endpoints that it was shown."""

    _known: dict[str, dict[str, Condition]] = field(default_factory=dict)

    def noted(self, endpoint: str, found: Sequence[Condition]) -> tuple[Condition, ...]:
        """`found`, where nothing changed with the time at which that was first seen."""
        before: Mapping[str, Condition] = self._known.get(endpoint, {})
        kept = tuple(_with_first_time(before.get(one.type), one) for one in found)
        self._known[endpoint] = {one.type: one for one in kept}
        return kept

    def keep_only(self, endpoints: Sequence[str]) -> None:
        """Forget all others."""
        wanted = set(endpoints)
        self._known = {name: known for name, known in self._known.items() if name in wanted}


def _with_first_time(before: Condition | None, now: Condition) -> Condition:
    if before is None or (before.status, before.reason) != (now.status, now.reason):
        return now
    return Condition(
        type=now.type,
        status=now.status,
        reason=now.reason,
        message=now.message,
        since=min(before.since, now.since),
    )


def _ready(endpoint: EndpointStatus, now: float) -> Condition:
    not_ready = "Failed" if endpoint.failed else "Starting"
    return Condition(
        type=ConditionType.READY,
        status=endpoint.ready,
        reason="Serving" if endpoint.ready else not_ready,
        message=endpoint.message,
        since=now,
    )


def _progressing(rollout: RolloutRecord | None, now: float) -> Condition:
    if rollout is None:
        return _no_rollout(ConditionType.PROGRESSING, now)
    state = rollout.state
    return Condition(
        type=ConditionType.PROGRESSING,
        status=not state.phase.is_over,
        reason=_camel(state.phase),
        message=f"rollout {rollout.id}: {state.reason}"
        if state.reason
        else f"rollout {rollout.id}",
        since=state.since,
    )


_TAKEN_BACK: Final = frozenset({Phase.ROLLED_BACK, Phase.ABORTED})


def _rolled_back(rollout: RolloutRecord | None, now: float) -> Condition:
    if rollout is None:
        return _no_rollout(ConditionType.ROLLED_BACK, now)
    state = rollout.state
    is_back = state.phase in _TAKEN_BACK
    return Condition(
        type=ConditionType.ROLLED_BACK,
        status=is_back,
        reason=_camel(state.phase),
        message=f"rollout {rollout.id}: {state.reason}" if is_back else "",
        since=state.since,
    )


def _no_rollout(kind: ConditionType, now: float) -> Condition:
    return Condition(type=kind, status=False, reason="NoRollout", message="", since=now)


def _scaled(endpoint: EndpointStatus, now: float) -> Condition:
    wanted = sum(revision.desired_replicas for revision in endpoint.revisions)
    ready = sum(
        min(sum(one.state == "ready" for one in revision.replicas), revision.desired_replicas)
        for revision in endpoint.revisions
    )
    surplus = sum(len(revision.replicas) for revision in endpoint.revisions) - wanted
    if ready < wanted:
        reason, message = "ScalingUp", f"{ready} of {wanted} replicas ready"
    elif surplus > 0:
        reason, message = "ScalingDown", f"{surplus} more than the {wanted} wanted"
    else:
        reason, message = "AtTarget" if wanted else "AtZero", f"{wanted} replicas"
    return Condition(
        type=ConditionType.SCALED,
        status=reason in {"AtTarget", "AtZero"},
        reason=reason,
        message=message,
        since=now,
    )


_BY_WEIGHT: Final = ("RowsDiffer", "NotExamined", "Declared", "OneRequestAtATime", "Proven")
"""Reasons of `AnswersIndependent`, the one that says least first."""


def _independent(endpoint: EndpointStatus, now: float) -> Condition:
    """By the weakest evidence among the versions of which replicas report."""
    messages: dict[str, str] = {}
    for one in endpoint.revisions:
        if one.batching is not None:
            message = f"version {one.version}: {one.batching_message}"
            messages[_evidence(one.batching)] = message
    reason = next((reason for reason in _BY_WEIGHT if reason in messages), "NotReported")
    return Condition(
        type=ConditionType.ANSWERS_INDEPENDENT,
        status=reason != "RowsDiffer",
        reason=reason,
        message=messages.get(reason, ""),
        since=now,
    )


def _evidence(report: BatchingReport) -> str:
    if report.difference is not None:
        return "RowsDiffer"
    if not report.batched:
        return "OneRequestAtATime"
    return "NotExamined" if report.independence is None else _camel(report.independence)


def _camel(value: StrEnum) -> str:
    return "".join(word.capitalize() for word in value.split("_"))
