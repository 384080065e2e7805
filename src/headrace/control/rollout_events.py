"""What is worth telling when a rollout moves? Events, with the numbers that decided."""

from typing import Any, Final

import msgspec

from headrace.control.store import Event, RolloutRecord
from headrace.rollout.state import Phase, RolloutState

_REASONS: Final = {
    Phase.PREPARING: "Preparing",
    Phase.PROGRESSING: "Progressing",
    Phase.PAUSED: "Paused",
    Phase.KEEPING: "Switched",
    Phase.PROMOTED: "Promoted",
    Phase.ROLLED_BACK: "RolledBack",
    Phase.ABORTED: "Aborted",
    Phase.REPORTED: "Reported",
    Phase.SUPERSEDED: "Superseded",
}


def events_of(
    record: RolloutRecord, state: RolloutState, *, now: float, actor: str = ""
) -> list[Event]:
    """The events of the move from a rollout's stored state to `state`; most moves have one."""
    before = record.state
    events = []
    if state.traffic.candidate != before.traffic.candidate and not state.phase.is_over:
        old, new = before.traffic.candidate, state.traffic.candidate
        message = (
            f"rollout {record.id}: weight of version {_version(record)} goes from {old} to {new}"
        )
        events.append(_event(record, state, now, "Weight", message, actor))
    if state.phase is not before.phase:
        message = f"rollout {record.id} is {state.phase.value.replace('_', ' ')}: {state.reason}"
        events.append(_event(record, state, now, _REASONS[state.phase], message, actor))
    return events


def _event(
    record: RolloutRecord, state: RolloutState, now: float, reason: str, message: str, actor: str
) -> Event:
    data: dict[str, Any] = {
        "phase": state.phase.value,
        "step": state.step,
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


def _version(record: RolloutRecord) -> str:
    return record.target.arms[0].key
