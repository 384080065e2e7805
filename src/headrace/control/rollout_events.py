"""What is worth telling when a rollout moves? Events, with the numbers that decided."""

from typing import Any, Final

import msgspec

from headrace.control.store import Event, RolloutRecord
from headrace.rollout.state import Phase, RolloutState

PHASE_REASONS: Final = {
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
"""The word for programs that an event about a new phase has."""


def events_of(
    record: RolloutRecord, state: RolloutState, *, now: float, actor: str = ""
) -> list[Event]:
    """The events of the move from a rollout's stored state to `state`; most moves have one."""
    before = record.state
    found: list[tuple[str, str]] = []
    if state.traffic.candidate != before.traffic.candidate and not state.phase.is_over:
        old, new = before.traffic.candidate, state.traffic.candidate
        version = record.target.arms[0].key
        found.append(
            ("Weight", f"rollout {record.id}: version {version} goes from {old} to {new} %")
        )
    if state.phase is not before.phase:
        phase = state.phase.value.replace("_", " ")
        message = f"rollout {record.id} is {phase}: {state.reason}"
        found.append((PHASE_REASONS[state.phase], message))
    return [
        _event(record, state, now=now, reason=reason, message=message, actor=actor)
        for reason, message in found
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
