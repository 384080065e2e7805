"""Commands of people to a rollout, and what follows."""

from typing import assert_never

from msgspec.structs import replace

from headrace.core import FailedPreconditionError
from headrace.rollout.moves import enter_phase, passed, paused, promoted, roll_back, take_over
from headrace.rollout.stages import plan_of
from headrace.rollout.state import DecidedBy, PromotedBy, RolloutPhase, RolloutState, Verb


def allowed_verbs(state: RolloutState) -> tuple[Verb, ...]:
    """The verbs that mean something now; empty if the rollout is over for good."""
    if state.phase is RolloutPhase.PROMOTED:
        return (Verb.ROLLBACK,)
    if state.phase.is_over:
        return ()
    halt = Verb.RESUME if state.phase is RolloutPhase.PAUSED else Verb.PAUSE
    if state.promoted_by is PromotedBy.HAND:
        return (halt, Verb.ABORT, Verb.ROLLBACK)
    return (Verb.PROMOTE, halt, Verb.ABORT, Verb.ROLLBACK)


def command(state: RolloutState, verb: Verb, *, now: float, reason: str = "") -> RolloutState:
    """The state after a person's word.

    `promote` skips what is left of the plan; metrics are not asked any more, replicas are still
    waited for. After a blue-green switch it drops the old version at once. `resume` goes on from a
    pause, and past a step that waits for approval. `abort` and `rollback` give all requests back
    to the old version; `rollback` also after the promotion.

    Args:
        now: As `RolloutState.elapsed_s`.
        reason: What the person says about it.

    Raises:
        FailedPreconditionError: The verb means nothing now; the message names those that do.
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
    """Something newer took the place of a rollout; one that is over stays what it is."""
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
    """Where `max_duration_s` counts from once the pause is left out; anew if it was used up."""
    if state.counted_since is None:
        return None
    counted_s = max(state.entered_at - state.counted_since, 0.0)
    return now if counted_s >= state.settings.max_duration_s else now - counted_s


def _by_hand(what: str, reason: str) -> str:
    return f"{what} by hand: {reason}" if reason else f"{what} by hand"


def _refusal(state: RolloutState, verb: Verb) -> str:
    phase = state.phase.value.replace("_", " ")
    verbs = ", ".join(allowed_verbs(state))
    ways = f"possible now: {verbs}" if verbs else "it is over; start another rollout"
    return f"cannot {verb} a rollout that is {phase} ({state.reason}); {ways}"
