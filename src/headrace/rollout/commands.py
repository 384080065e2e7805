"""Manual commands to a rollout, and their effects."""

from typing import assert_never

from msgspec.structs import replace

from headrace.core import FailedPreconditionError
from headrace.rollout.moves import enter_phase, passed, paused, promoted, roll_back, take_over
from headrace.rollout.stages import plan_of
from headrace.rollout.state import DecidedBy, PromotedBy, RolloutPhase, RolloutState, Verb


def allowed_verbs(state: RolloutState) -> tuple[Verb, ...]:
    """Return the currently valid verbs; empty if the rollout has ended."""
    if state.phase is RolloutPhase.PROMOTED:
        return (Verb.ROLLBACK,)
    if state.phase.is_over:
        return ()
    halt = Verb.RESUME if state.phase is RolloutPhase.PAUSED else Verb.PAUSE
    if state.promoted_by is PromotedBy.HAND:
        return (halt, Verb.ABORT, Verb.ROLLBACK)
    return (Verb.PROMOTE, halt, Verb.ABORT, Verb.ROLLBACK)


def command(state: RolloutState, verb: Verb, *, now: float, reason: str = "") -> RolloutState:
    """Return the state after a manual command.

    `promote` skips the rest of the plan; metrics no longer count, but replicas must be ready. After
    a blue-green switch it drops the old version at once. `resume` continues after a pause, and past
    a step that waits for approval. `abort` and `rollback` return all requests to the old version;
    `rollback` also after the promotion.

    Args:
        now: Time as `RolloutState.elapsed_s`.
        reason: The operator's reason.

    Raises:
        FailedPreconditionError: The verb is not valid now; the message lists the valid ones.
    """
    if verb not in allowed_verbs(state):
        raise FailedPreconditionError(_refusal(state, verb))
    state = replace(state, elapsed_s=now)
    match verb:
        case Verb.PROMOTE:
            return _promote(state, now=now, reason=_by_hand("promoted", reason))
        case Verb.PAUSE:
            return paused(state, now=now, reason=_by_hand("paused", reason))
        case Verb.RESUME:
            return _resume(state, now=now, reason=_by_hand("resumed", reason))
        case Verb.ABORT:
            reason_text = _by_hand("aborted", reason)
            return roll_back(
                state, DecidedBy.HAND, now=now, reason=reason_text, phase=RolloutPhase.ABORTED
            )
        case Verb.ROLLBACK:
            reason_text = _by_hand("rolled back", reason)
            return roll_back(state, DecidedBy.HAND, now=now, reason=reason_text)
        case _:
            assert_never(verb)


def supersede(state: RolloutState, *, reason: str) -> RolloutState:
    """Return the state after a newer rollout replaced it; an ended one is unchanged."""
    if state.phase.is_over:
        return state
    return enter_phase(state, RolloutPhase.SUPERSEDED, reason=reason, now=state.elapsed_s)


def _promote(state: RolloutState, *, now: float, reason: str) -> RolloutState:
    if RolloutPhase.KEEPING in {state.phase, state.resumes_at_phase}:
        return promoted(state, DecidedBy.HAND, now=now, reason=reason)
    return take_over(state, plan_of(state.settings), PromotedBy.HAND, now=now, reason=reason)


def _resume(state: RolloutState, *, now: float, reason: str) -> RolloutState:
    resumed = replace(
        enter_phase(
            state, state.resumes_at_phase or RolloutPhase.PROGRESSING, reason=reason, now=now
        ),
        counted_since=_counted_since(state, now),
        aimed_at=now,
    )
    if not state.awaits_approval:
        return resumed
    return passed(resumed, plan_of(state.settings), now=now, reason=reason)


def _counted_since(state: RolloutState, now: float) -> float | None:
    """Return the start of `max_duration_s` without the pause; `now` if it was used up."""
    if state.counted_since is None:
        return None
    counted_s = max(state.entered_at - state.counted_since, 0.0)
    return now if counted_s >= state.settings.max_duration_s else now - counted_s


def _by_hand(description: str, reason: str) -> str:
    return f"{description} by hand: {reason}" if reason else f"{description} by hand"


def _refusal(state: RolloutState, verb: Verb) -> str:
    phase = state.phase.value.replace("_", " ")
    verbs = ", ".join(allowed_verbs(state))
    ways = f"possible now: {verbs}" if verbs else "it is over; start another rollout"
    return f"cannot {verb} a rollout that is {phase} ({state.reason}); {ways}"
