"""State machine of a rollout, driven by facts and commands. Pure.

Times are seconds for which control planes have observed the rollout (`RolloutState.elapsed_s`), not
wall-clock time: clock changes, and time without a control plane, have no effect.
"""

from msgspec.structs import replace

from headrace.core.spec.rollout import RolloutSpec
from headrace.rollout.commands import allowed_verbs, command, supersede
from headrace.rollout.moves import (
    is_published,
    keep_old_version,
    passed,
    paused,
    promoted,
    published,
    reasons_for,
    roll_back,
    take_over,
)
from headrace.rollout.outcomes import Outcome
from headrace.rollout.stages import RolloutPlan, Stage, plan_of
from headrace.rollout.state import DecidedBy, PromotedBy, RolloutFacts, RolloutPhase, RolloutState

__all__ = ["advance", "allowed_verbs", "begin", "command", "due_at", "supersede"]


def begin(settings: RolloutSpec, *, started: float) -> RolloutState:
    """Return the initial state: candidate replicas are requested, and get no traffic yet.

    Args:
            began: Seconds since 1970, for display.
    """
    return RolloutState(
        settings=settings,
        phase=RolloutPhase.PREPARING,
        began=started,
        since=started,
        elapsed_s=0.0,
        reason="the new version's replicas are being started",
        traffic=plan_of(settings).start,
    )


def advance(state: RolloutState, facts: RolloutFacts) -> RolloutState:
    """Return the state after `facts`; idempotent if they change nothing.

    One call may pass several stages, but changes traffic at most once: facts describe the traffic
    under which they were read, so they do not count for new traffic.
    """
    if state.phase.is_over:
        return state
    plan = plan_of(state.settings)
    state = _record_facts(state, plan, facts)
    by, rollback_reason = _rollback_reason(state, facts)
    if rollback_reason:
        return roll_back(state, by, now=facts.now, reason=rollback_reason)
    while (moved := _next_state(state, plan, facts)) is not state:
        state = moved
    return _timed_out(state, plan, facts)


def due_at(state: RolloutState) -> float | None:
    """Return the `elapsed_s` at which time alone triggers a change; None if only facts can."""
    if state.phase.is_over or state.phase is RolloutPhase.PAUSED:
        return None
    plan = plan_of(state.settings)
    if state.phase is RolloutPhase.KEEPING:
        return _keep_until(state, plan)
    due = [_times_out_at(state, plan)]
    if not is_published(state, plan):
        due.append(_ready_by(state))
    elif state.step_since is not None and state.promoted_by is None:
        stage = plan.stages[state.step]
        due.append(None if stage.until == "verdict" else state.step_since + stage.pause_s)
    return min((time for time in due if time is not None), default=None)


def _record_facts(state: RolloutState, plan: RolloutPlan, facts: RolloutFacts) -> RolloutState:
    """Record the newest verdict and time, and when the step's weight came into force."""
    state = replace(state, verdict=facts.verdict or state.verdict, elapsed_s=facts.now)
    is_new = state.step_since is None and is_published(state, plan)
    if not is_new or not facts.in_force or facts.now == state.aimed_at:
        return state
    gets_requests = state.traffic.candidate > 0 or state.traffic.mirror_percent > 0
    counted_since = facts.now if gets_requests and state.counted_since is None else None
    return replace(state, step_since=facts.now, counted_since=counted_since or state.counted_since)


def _rollback_reason(state: RolloutState, facts: RolloutFacts) -> tuple[DecidedBy, str]:
    """Return why the candidate must get no more requests; an empty text without a reason."""
    if facts.candidate_failed:
        reason = f"the new version cannot run: {facts.candidate_failed}"
        return DecidedBy.REPLICAS, reason
    verdict, is_forced = facts.verdict, state.promoted_by is PromotedBy.HAND
    is_bad = verdict is not None and verdict.outcome is Outcome.ROLL_BACK and not is_forced
    return DecidedBy.VERDICT, reasons_for(verdict, Outcome.ROLL_BACK) if verdict and is_bad else ""


def _next_state(state: RolloutState, plan: RolloutPlan, facts: RolloutFacts) -> RolloutState:
    """Return the next state; the same state if nothing is due."""
    now = facts.now
    match state.phase:
        case RolloutPhase.PREPARING | RolloutPhase.PROGRESSING if not is_published(state, plan):
            return _publish_when_ready(state, plan, facts)
        case RolloutPhase.PROGRESSING if state.step_since is not None:
            if state.promoted_by is None:
                return _hold_stage(state, plan, facts)
            return _complete_takeover(state, plan, facts)
        case RolloutPhase.KEEPING if now >= _keep_until(state, plan):
            reason = f"the old version was not needed for {plan.keep_s:g} s after the switch"
            return promoted(state, DecidedBy.PLAN, now=now, reason=reason)
        case _:
            return state


def _complete_takeover(state: RolloutState, plan: RolloutPlan, facts: RolloutFacts) -> RolloutState:
    """Drop or keep the old version: never by time alone, as after a resumed pause."""
    if not facts.in_force:
        return state
    if plan.keep_s is not None:
        return keep_old_version(state, plan.keep_s, now=facts.now)
    by = DecidedBy((state.promoted_by or PromotedBy.PLAN).value)
    return promoted(state, by, now=facts.now, reason=state.reason)


def _publish_when_ready(
    state: RolloutState, plan: RolloutPlan, facts: RolloutFacts
) -> RolloutState:
    """Publish the step's weight when its replicas are ready."""
    if facts.candidate_ready and facts.now != state.aimed_at:
        return published(state, plan, now=facts.now)
    if facts.now < _ready_by(state):
        return state
    timeout_s = state.settings.ready_timeout_s
    reason = f"the new version's replicas were not ready within {timeout_s:g} s"
    return roll_back(state, DecidedBy.REPLICAS, now=facts.now, reason=reason)


def _hold_stage(state: RolloutState, plan: RolloutPlan, facts: RolloutFacts) -> RolloutState:
    """Return the next step once this one lasted long enough and its condition is met."""
    stage = plan.stages[state.step]
    assert state.step_since is not None, "only a step in force is held"
    if facts.now < state.step_since + stage.pause_s:
        return state
    match stage.until:
        case None:
            return passed(state, plan, now=facts.now, reason=f"{stage.name} is done")
        case "approval":
            reason = f"{stage.name} waits for approval: resume goes on, promote skips the rest"
            return paused(state, now=facts.now, reason=reason, awaits_approval=True)
        case "verdict":
            return _judged(state, plan, stage, facts)


def _judged(
    state: RolloutState, plan: RolloutPlan, stage: Stage, facts: RolloutFacts
) -> RolloutState:
    verdict = facts.verdict
    assert state.step_since is not None, "only a step in force is judged"
    if verdict is None or verdict.outcome is not Outcome.PROMOTE:
        return state
    # A verdict that was read before the weight came into force does not concern this step, and the
    # samples counted by then belong to another step.
    if facts.judged_at <= state.step_since or facts.step_samples < state.settings.min_samples:
        return state
    metrics = ", ".join(metric.metric for metric in verdict.metrics)
    reason = f"{stage.name} passed: {metrics} within what is tolerated"
    return passed(state, plan, now=facts.now, reason=reason)


def _timed_out(state: RolloutState, plan: RolloutPlan, facts: RolloutFacts) -> RolloutState:
    """Apply `on_timeout` if the time for a decision is over."""
    times_out_at, now = _times_out_at(state, plan), facts.now
    if times_out_at is None or now < times_out_at:
        return state
    reason = _not_enough(state)
    if plan.only_reports:
        return roll_back(state, DecidedBy.TIME, now=now, reason=reason, phase=RolloutPhase.REPORTED)
    match state.settings.on_timeout:
        case None if facts.insufficient_traffic:
            reason = f"{reason}; {facts.insufficient_traffic}, or resume for as long again"
            return paused(state, now=now, reason=reason)
        case "rollback" | None:
            return roll_back(state, DecidedBy.TIME, now=now, reason=reason)
        case "pause":
            return paused(state, now=now, reason=reason)
        case "promote":
            reason = f"{reason}; promoted, as on_timeout says"
            return take_over(state, plan, PromotedBy.TIME, now=now, reason=reason)


def _not_enough(state: RolloutState) -> str:
    within = f"not enough evidence within {state.settings.max_duration_s:g} s"
    if state.verdict is None:
        return f"{within}: nothing was counted"
    if state.verdict.outcome is Outcome.WAIT:
        return f"{within}: {reasons_for(state.verdict, Outcome.WAIT)}"
    return f"{within}: fewer than {state.settings.min_samples} requests per version in this step"


def _times_out_at(state: RolloutState, plan: RolloutPlan) -> float | None:
    """Return when the time for a decision is over; None while it is not counted."""
    is_counting = state.phase is RolloutPhase.PROGRESSING and state.promoted_by is None
    if not is_counting or state.counted_since is None or plan.max_duration_s is None:
        return None
    return state.counted_since + plan.max_duration_s


def _ready_by(state: RolloutState) -> float:
    return (state.aimed_at or 0.0) + state.settings.ready_timeout_s


def _keep_until(state: RolloutState, plan: RolloutPlan) -> float:
    assert state.step_since is not None, "the switch is in force"
    assert plan.keep_s is not None, "only a plan that keeps the old version gets here"
    return state.step_since + plan.keep_s
