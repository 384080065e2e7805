"""Events and audit log entries of rollout transitions, with the numbers behind them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headrace.control.model.audit_log import AuditEntry
from headrace.control.model.records import Event, RolloutRecord
from headrace.core import span
from headrace.rollout.state import RolloutPhase, RolloutState

PHASE_REASONS: Final = {
    RolloutPhase.PREPARING: "Preparing",
    RolloutPhase.PROGRESSING: "Progressing",
    RolloutPhase.PAUSED: "Paused",
    RolloutPhase.KEEPING: "Switched",
    RolloutPhase.PROMOTED: "Promoted",
    RolloutPhase.ROLLED_BACK: "RolledBack",
    RolloutPhase.ABORTED: "Aborted",
    RolloutPhase.REPORTED: "Reported",
    RolloutPhase.SUPERSEDED: "Superseded",
}
"""Reason, for programs, of the event about a new phase."""


def events_of(
    record: RolloutRecord, state: RolloutState, *, now: float, actor: str = ""
) -> list[Event]:
    """Return the events of the transition from a rollout's stored state to `state`."""
    before = record.state
    entries: list[tuple[str, str]] = []
    if state.traffic.candidate != before.traffic.candidate and not state.phase.is_over:
        old, new = before.traffic.candidate, state.traffic.candidate
        version = record.target.arms[0].key
        entries.append(
            ("Weight", f"rollout {record.id}: version {version} goes from {old} to {new} %")
        )
    if state.phase is not before.phase:
        phase = state.phase.value.replace("_", " ")
        after = f" after {span(state.elapsed_s)}" if state.phase.is_over else ""
        message = f"rollout {record.id} is {phase}{after}: {state.reason}"
        entries.append((PHASE_REASONS[state.phase], message))
    return [
        _event(record, state, now=now, reason=reason, message=message, actor=actor)
        for reason, message in entries
    ]


def _event(
    record: RolloutRecord,
    state: RolloutState,
    *,
    now: float,
    reason: str,
    message: str,
    actor: str,
) -> Event:
    data: dict[str, Any] = {
        "phase": state.phase.value,
        "step": state.step,
        "from_version": " and ".join(arm.key for arm in record.source.arms),
        "to_version": record.target.arms[0].key,
        "duration_s": state.elapsed_s,
        "decided_by": "" if state.decided_by is None else state.decided_by.value,
        "why": state.reason,
        "weights": {
            "candidate": state.traffic.candidate,
            "baseline": state.traffic.baseline,
            "stable": state.traffic.stable,
        },
    }
    if state.verdict is not None:
        data["verdict"] = msgspec.to_builtins(state.verdict)
    return Event(
        at=now,
        endpoint=record.endpoint,
        kind="rollout",
        reason=reason,
        message=message,
        generation=record.target.generation,
        rollout=record.id,
        actor=actor,
        data=data,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutEnd:
    """End of a rollout, or the switch of a blue-green rollout, in an endpoint's history."""

    id: str
    at: float
    """Seconds since 1970."""
    phase: str
    from_version: str
    to_version: str
    duration_s: float
    """Duration of the rollout until then."""
    decided_by: str
    """The person who decided, else `verdict`, `replicas`, `plan`, `time` or `hand`."""
    why: str
    """Explanation in one line."""


def ends_of(events: Iterable[Event]) -> list[RolloutEnd]:
    """Return the ends of rollouts in `events`, in order."""
    ends = {phase.value for phase in RolloutPhase if phase.is_over or phase is RolloutPhase.KEEPING}
    return [
        RolloutEnd(
            id=event.rollout,
            at=event.at,
            phase=phase,
            from_version=event.data.get("from_version", ""),
            to_version=event.data.get("to_version", ""),
            duration_s=event.data.get("duration_s", 0.0),
            decided_by=event.actor or event.data.get("decided_by", ""),
            why=event.data.get("why", event.message).partition("\n")[0],
        )
        for event in events
        if event.kind == "rollout"
        and event.reason != "Weight"
        and (phase := event.data.get("phase", "")) in ends
    ]


def rollout_changes(
    record: RolloutRecord, state: RolloutState, *, now: float, actor: str, action: str
) -> list[AuditEntry]:
    """Return the audit entry of a transition to `state`; none if only the step advances.

    Args:
        action: The command of a person; empty without one.
    """
    if not action and state.phase is record.state.phase:
        return []
    return [
        AuditEntry(
            at=now,
            actor=actor,
            action=action or f"rollout.{state.phase}",
            object=f"{record.endpoint} {record.id}",
            before=_audit_facts(record.state),
            after={**_audit_facts(state), "reason": state.reason},
        )
    ]


def _audit_facts(state: RolloutState) -> dict[str, Any]:
    return {"phase": state.phase.value, "step": state.step, "weight": state.traffic.candidate}
