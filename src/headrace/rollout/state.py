"""Where is a rollout, and what traffic does that mean? Data only; `machine` moves it on."""

from enum import StrEnum

import msgspec

from headrace.core.rollout_settings import RolloutSettings
from headrace.rollout.outcomes import Verdict


class Phase(StrEnum):
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
        return self not in {Phase.PREPARING, Phase.PROGRESSING, Phase.PAUSED, Phase.KEEPING}


class PromotedBy(StrEnum):
    """Who decided that the candidate is to take all requests."""

    PLAN = "plan"
    """All steps are done; a verdict that says `roll_back` still wins."""
    TIME = "time"
    """`on_timeout` says so; a verdict that says `roll_back` still wins."""
    HAND = "hand"
    """A person; metrics are not asked any more."""


class Verb(StrEnum):
    """What a person may tell a rollout, at any time."""

    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
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


class RolloutState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that must survive a restart. Times are seconds since 1970.

    `step` counts canary steps from 0. `step_since`: when the step's weight came into force; None
    until then. `since`: when `phase` began. `resumes_at_phase`: what a paused rollout goes back to.
    `reason`: why the phase is what it is, for people. `verdict`: the newest.

    `aimed_at`: when `traffic` or `step` changed last; None at the beginning. `counted_since`: where
    `max_duration_s` counts from; None until the candidate first got requests. `promoted_by`: set
    once the candidate is to take over, while only its replicas and the gateway are waited for.
    `awaits_approval`: paused by the plan, not by hand, so `resume` passes the step.
    `dropped_stable`: the old version's replicas were let go, so a way back has to start them first.
    """

    settings: RolloutSettings
    phase: Phase
    began: float
    since: float
    step: int = 0
    step_since: float | None = None
    resumes_at_phase: Phase | None = None
    reason: str = ""
    verdict: Verdict | None = None
    traffic: Traffic = Traffic()
    aimed_at: float | None = None
    counted_since: float | None = None
    promoted_by: PromotedBy | None = None
    awaits_approval: bool = False
    dropped_stable: bool = False


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver saw, at `now` (seconds since 1970).

    `candidate_ready`: all replicas that `traffic` asks for were ready. `candidate_failed`: why the
    candidate cannot become ready; empty while it may. `in_force`: the gateway acknowledged
    `traffic`. `step_samples`: requests per arm since the step's weight came into force, the
    smaller.
    """

    now: float
    candidate_ready: bool = False
    candidate_failed: str = ""
    in_force: bool = False
    verdict: Verdict | None = None
    step_samples: int = 0
