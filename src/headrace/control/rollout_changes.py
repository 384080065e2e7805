"""What does the trail say when a rollout moves? A person's word, and each new phase."""

from typing import Any

from headrace.control.access.trail import Change
from headrace.control.state.records import RolloutRecord
from headrace.rollout.state import RolloutState


def rollout_changes(
    record: RolloutRecord, state: RolloutState, *, now: float, actor: str, action: str
) -> list[Change]:
    """The entry of a move from a rollout's stored state to `state`; none if it only went a step on.

    Args:
        action: What a person said; empty if nobody did.
    """
    if not action and state.phase is record.state.phase:
        return []
    return [
        Change(
            at=now,
            actor=actor,
            action=action or f"rollout.{state.phase}",
            object=f"{record.endpoint} {record.id}",
            before=_told(record.state),
            after={**_told(state), "reason": state.reason},
        )
    ]


def _told(state: RolloutState) -> dict[str, Any]:
    return {"phase": state.phase.value, "step": state.step, "weight": state.traffic.candidate}
