"""State of a rollout and the traffic that it asks for; `machine` computes the next state."""

from enum import StrEnum

import msgspec
from msgspec.structs import force_setattr

from headrace.core.spec.rollout import RolloutSpec
from headrace.rollout.outcomes import RolloutVerdict


class RolloutPhase(StrEnum):
    """Where a rollout is in its life."""

    PREPARING = "preparing"
    """The candidate's replicas are being started."""
    PROGRESSING = "progressing"
    PAUSED = "paused"
    KEEPING = "keeping"
    """Blue-green: switched, and the old version is kept for an instant way back."""
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    """By a verdict, by a version that cannot become ready, by its time, or by hand."""
    ABORTED = "aborted"
    """By hand, before it was decided; the same traffic as rolled back."""
    REPORTED = "reported"
    """A shadow that is not to be promoted ended with its report."""
    SUPERSEDED = "superseded"
    """Another apply, rollout or undo took its place."""

    @property
    def is_over(self) -> bool:
        """Whether nothing but a person's verb moves it on."""
        return self not in {
            RolloutPhase.PREPARING,
            RolloutPhase.PROGRESSING,
            RolloutPhase.PAUSED,
            RolloutPhase.KEEPING,
        }


class PromotedBy(StrEnum):
    """Who decided that the candidate is to take all requests."""

    PLAN = "plan"
    """All steps are done; a verdict that says `roll_back` still wins."""
    TIME = "time"
    """`on_timeout` says so; a verdict that says `roll_back` still wins."""
    HAND = "hand"
    """A person; metrics are not asked any more."""


class DecidedBy(StrEnum):
    """What decided how a rollout ended."""

    VERDICT = "verdict"
    """A metric that was shown to be worse than tolerated."""
    REPLICAS = "replicas"
    """The candidate's, which were not ready in time, or cannot run."""
    PLAN = "plan"
    """Its stages are done; those that waited for a verdict had one."""
    TIME = "time"
    """`on_timeout`, once `max_duration_s` was over."""
    HAND = "hand"


class Verb(StrEnum):
    """What a person may tell a rollout, at any time."""

    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"


class TrafficShares(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets what: `stable` has what `candidate` and `baseline` leave of 100.

    `candidate_scale`: which part (0 to 1) of its replicas the candidate needs at this point; 0 for
    none at all. `has_stable`: whether the old version's replicas are kept.
    """

    candidate: int = 0
    baseline: int = 0
    mirror_percent: int = 0
    candidate_scale: float = 1.0
    has_baseline: bool = False
    has_stable: bool = True

    @property
    def stable(self) -> int:
        """The old version's weight."""
        return 100 - self.candidate - self.baseline

    @property
    def share(self) -> float:
        """The candidate's share of the requests to the two versions that are compared, 0 to 1."""
        other = self.baseline if self.has_baseline else self.stable
        return self.candidate / max(self.candidate + other, 1)


class RolloutState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that must survive a restart.

    `began` and `since` (when `phase` began) are seconds since 1970, for people: nothing is decided
    by them. All other times are seconds of `elapsed_s`: how long control planes have watched the
    rollout until now, by a clock that is never set.

    `step` counts canary steps from 0. `step_since`: when the step's weight came into force; None
    until then. `entered_at`: when `phase` began. `resumes_at_phase`: what a paused rollout goes
    back to. `reason`: why the phase is what it is, for people. `verdict`: the newest.

    `aimed_at`: when `traffic` or `step` changed last; None at the beginning. `counted_since`: where
    `max_duration_s` counts from; None until the candidate first got requests. `promoted_by`: set
    once the candidate is to take over, while only its replicas and the gateway are waited for.
    `awaits_approval`: paused by the plan, not by hand, so `resume` passes the step.
    `dropped_stable`: the old version's replicas were let go, so a way back has to start them first.
    `decided_by`: what promoted it or gave the requests back last; None before.
    """

    settings: RolloutSpec
    phase: RolloutPhase
    began: float
    since: float
    elapsed_s: float = -1.0
    """Below 0: stored by a release whose times were all seconds since 1970."""
    entered_at: float = 0.0
    step: int = 0
    step_since: float | None = None
    resumes_at_phase: RolloutPhase | None = None
    reason: str = ""
    verdict: RolloutVerdict | None = None
    traffic: TrafficShares = TrafficShares()
    aimed_at: float | None = None
    counted_since: float | None = None
    promoted_by: PromotedBy | None = None
    awaits_approval: bool = False
    dropped_stable: bool = False
    decided_by: DecidedBy | None = None

    def __post_init__(self) -> None:
        """Convert the times of a state of the older format, as of its newest time."""
        if self.elapsed_s >= 0.0:
            return
        elapsed_s = 0.0
        times = {"entered_at": self.since}
        times |= {name: getattr(self, name) for name in ("step_since", "aimed_at", "counted_since")}
        for name, time in times.items():
            if time is not None:
                force_setattr(self, name, max(time - self.began, 0.0))
                elapsed_s = max(elapsed_s, time - self.began)
        force_setattr(self, "elapsed_s", elapsed_s)


class RolloutFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver saw, at `now` (seconds of `RolloutState.elapsed_s`).

    `candidate_ready`: all replicas that `traffic` asks for were ready. `candidate_failed`: why the
    candidate cannot become ready; empty while it may. `in_force`: the gateway acknowledged
    `traffic`. `step_samples`: requests per arm since the step's weight came into force, the
    smaller. `judged_at`: when `verdict` was read. `cannot_suffice`: why too few requests come for
    a decision in time, and what helps; empty where they may suffice.
    """

    now: float
    candidate_ready: bool = False
    candidate_failed: str = ""
    in_force: bool = False
    verdict: RolloutVerdict | None = None
    judged_at: float = 0.0
    step_samples: int = 0
    insufficient_traffic: str = ""
