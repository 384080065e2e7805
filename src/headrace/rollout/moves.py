"""Single transitions of a rollout. Each returns the next state and checks no condition.

Traffic changes in two transitions: the candidate first gets the replicas of the next stage, while
the weights stay; when they are ready, it gets the weight.
"""

from msgspec.structs import replace

from headrace.rollout.outcomes import Outcome, RolloutVerdict
from headrace.rollout.stages import HELD_BACK, RolloutPlan
from headrace.rollout.state import DecidedBy, PromotedBy, RolloutPhase, RolloutState, TrafficShares


def is_preparing(state: RolloutState) -> bool:
    """Whether the candidate has never been ready, paused or not."""
    return RolloutPhase.PREPARING in {state.phase, state.resumes_at_phase}


def is_published(state: RolloutState, plan: RolloutPlan) -> bool:
    """Whether `traffic` is the step's complete target, including its weights."""
    return not is_preparing(state) and state.traffic == plan.traffic(state.step)


def scale_for_step(
    state: RolloutState, plan: RolloutPlan, step: int, *, now: float
) -> RolloutState:
    """Request the replicas of `step`; the weights stay."""
    scale = plan.traffic(step).candidate_scale
    return replace(
        state,
        step=step,
        step_since=None,
        traffic=replace(state.traffic, candidate_scale=scale),
        aimed_at=now,
    )


def published(state: RolloutState, plan: RolloutPlan, *, now: float) -> RolloutState:
    """Request the weights of the step; its replicas are ready."""
    is_stage = state.step < len(plan.stages)
    return replace(
        enter_phase(
            state,
            RolloutPhase.PROGRESSING,
            reason=plan.stages[state.step].name if is_stage else state.reason,
            now=now,
        ),
        traffic=plan.traffic(state.step),
        aimed_at=now,
    )


def passed(state: RolloutState, plan: RolloutPlan, *, now: float, reason: str) -> RolloutState:
    """Complete the current stage: the next one follows, or the end of the plan."""
    following = state.step + 1
    if following < len(plan.stages):
        name = plan.stages[following].name
        scaling = enter_phase(
            state,
            RolloutPhase.PROGRESSING,
            reason=f"{reason}; getting replicas ready for {name}",
            now=now,
        )
        return scale_for_step(scaling, plan, following, now=now)
    if plan.only_reports:
        return roll_back(state, DecidedBy.PLAN, now=now, reason=reason, phase=RolloutPhase.REPORTED)
    return take_over(state, plan, PromotedBy.PLAN, now=now, reason=reason)


def take_over(
    state: RolloutState, plan: RolloutPlan, by: PromotedBy, *, now: float, reason: str
) -> RolloutState:
    """Give the candidate all requests as soon as its replicas are ready."""
    decided = replace(
        enter_phase(state, RolloutPhase.PROGRESSING, reason=reason, now=now), promoted_by=by
    )
    return scale_for_step(decided, plan, len(plan.stages), now=now)


def keep_old_version(state: RolloutState, keep_s: float, *, now: float) -> RolloutState:
    """Keep the old version while the candidate has all requests and metrics are observed."""
    reason = f"{state.reason}; the old version is kept for {keep_s:g} s"
    return replace(
        enter_phase(state, RolloutPhase.KEEPING, reason=reason, now=now), promoted_by=None
    )


def promoted(state: RolloutState, by: DecidedBy, *, now: float, reason: str) -> RolloutState:
    """Complete the promotion: the old version is no longer needed."""
    traffic = TrafficShares(candidate=100, has_stable=False)
    done = enter_phase(state, RolloutPhase.PROMOTED, reason=reason, now=now)
    return replace(done, traffic=traffic, dropped_stable=True, decided_by=by)


def paused(
    state: RolloutState, *, now: float, reason: str, awaits_approval: bool = False
) -> RolloutState:
    """Pause: traffic stays, and time is not counted until `resume`."""
    before = state.phase
    return replace(
        enter_phase(state, RolloutPhase.PAUSED, reason=reason, now=now),
        resumes_at_phase=before,
        awaits_approval=awaits_approval,
    )


def roll_back(
    state: RolloutState,
    by: DecidedBy,
    *,
    now: float,
    reason: str,
    phase: RolloutPhase = RolloutPhase.ROLLED_BACK,
) -> RolloutState:
    """Return all requests to the old version: at once, unless it was dropped."""
    back = enter_phase(state, phase, reason=reason, now=now)
    return replace(back, traffic=HELD_BACK, decided_by=by)


def enter_phase(
    state: RolloutState, phase: RolloutPhase, *, reason: str, now: float
) -> RolloutState:
    """Enter `phase`, not paused unless set by `paused`."""
    return replace(
        state,
        phase=phase,
        entered_at=state.entered_at if phase is state.phase else now,
        reason=reason,
        resumes_at_phase=None,
        awaits_approval=False,
    )


def reasons_for(verdict: RolloutVerdict, outcome: Outcome) -> str:
    """Return the reasons of the metrics with this outcome."""
    reasons = [metric.reason for metric in verdict.metrics if metric.outcome is outcome]
    return "; ".join(reasons) or verdict.explanation
