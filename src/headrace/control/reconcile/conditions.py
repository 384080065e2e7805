"""Conditions of endpoints, as in Kubernetes. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.control.model.records import RolloutRecord
from headrace.control.reconcile.status import EndpointStatus
from headrace.observe.row_checks import BatchingReport
from headrace.rollout.state import RolloutPhase


class ConditionType(StrEnum):
    """Type of an endpoint condition."""

    READY = "Ready"
    """Every version that receives requests has ready replicas."""
    PROGRESSING = "Progressing"
    """A rollout is in progress."""
    ROLLED_BACK = "RolledBack"
    """The newest rollout was rolled back: the spec's version is held back until the next change."""
    SCALED = "Scaled"
    """The number of ready replicas equals the desired number."""
    ANSWERS_INDEPENDENT = "AnswersIndependent"
    """No response depends on another caller's request, as far as known."""


@dataclass(frozen=True, slots=True)
class EndpointCondition:
    """One condition of an endpoint."""

    type: str
    status: bool
    reason: str
    message: str
    since: float
    """Time of the last change of `status` or `reason`, in seconds since 1970."""


def conditions_of(
    endpoint: EndpointStatus, rollout: RolloutRecord | None, *, now: float
) -> tuple[EndpointCondition, ...]:
    """Return all conditions of an endpoint; `now` is the time of those without a timestamp.

    Args:
        rollout: The newest rollout, or None.
    """
    kinds, conditions = ConditionType, list[EndpointCondition]()

    def add(
        kind: ConditionType, reason: str, message: str, *, is_so: bool, since: float = now
    ) -> None:
        conditions.append(EndpointCondition(kind, is_so, reason, message, since))

    reason = "Serving" if endpoint.ready else "Failed" if endpoint.failed else "Starting"
    add(kinds.READY, reason, endpoint.message, is_so=endpoint.ready)
    if rollout is None:
        add(kinds.PROGRESSING, "NoRollout", "", is_so=False)
        add(kinds.ROLLED_BACK, "NoRollout", "", is_so=False)
    else:
        state, name = rollout.state, f"rollout {rollout.id}"
        phase, text = _camel(state.phase), f"{name}: {state.reason}"
        is_going, is_back = not state.phase.is_over, state.phase in _ROLLED_BACK
        message = text if state.reason else name
        add(kinds.PROGRESSING, phase, message, is_so=is_going, since=state.since)
        add(kinds.ROLLED_BACK, phase, text if is_back else "", is_so=is_back, since=state.since)
    reason, message = _scaled(endpoint)
    add(kinds.SCALED, reason, message, is_so=reason in {"AtTarget", "AtZero"})
    # The result follows the weakest evidence among the versions whose replicas report.
    messages = {
        _evidence(revision.batching): f"version {revision.version}: {revision.batching_message}"
        for revision in endpoint.revisions
        if revision.batching is not None
    }
    reason = next((reason for reason in _BY_WEIGHT if reason in messages), "NotReported")
    is_so = reason != "RowsDiffer"
    add(kinds.ANSWERS_INDEPENDENT, reason, messages.get(reason, ""), is_so=is_so)
    return tuple(conditions)


_ROLLED_BACK: Final = frozenset({RolloutPhase.ROLLED_BACK, RolloutPhase.ABORTED})
_BY_WEIGHT: Final = ("RowsDiffer", "NotExamined", "Declared", "OneRequestAtATime", "Proven")
"""Reasons of `AnswersIndependent`, the weakest first."""


def _scaled(endpoint: EndpointStatus) -> tuple[str, str]:
    """Return reason and message: whether as many replicas are ready as desired."""
    desired = sum(revision.desired_replicas for revision in endpoint.revisions)
    ready = sum(
        min(
            sum(replica.state == "ready" for replica in revision.replicas),
            revision.desired_replicas,
        )
        for revision in endpoint.revisions
    )
    surplus = sum(len(revision.replicas) for revision in endpoint.revisions) - desired
    if ready < desired:
        return "ScalingUp", f"{ready} of {desired} replicas ready"
    if surplus > 0:
        return "ScalingDown", f"{surplus} more than the {desired} wanted"
    return "AtTarget" if desired else "AtZero", f"{desired} replicas"


def _evidence(report: BatchingReport) -> str:
    if report.difference is not None:
        return "RowsDiffer"
    if not report.batched:
        return "OneRequestAtATime"
    return "NotExamined" if report.independence is None else _camel(report.independence)


def _camel(value: StrEnum) -> str:
    return "".join(word.capitalize() for word in value.split("_"))
