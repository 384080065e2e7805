"""State of a rollout and its requested traffic; `machine` computes the next state."""

from enum import StrEnum

import msgspec
from msgspec.structs import force_setattr

from headrace.core.spec.rollout import RolloutSpec
from headrace.rollout.outcomes import RolloutVerdict


class RolloutPhase(StrEnum):
    """Phase of a rollout."""

    PREPARING = "preparing"
    """The candidate's replicas are starting."""
    PROGRESSING = "progressing"
    PAUSED = "paused"
    KEEPING = "keeping"
    """Blue-green: switched, and the old version is kept for an instant rollback."""
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    """Old version restored: by a verdict, an unready candidate, a timeout, or manually."""
    ABORTED = "aborted"
    """Stopped manually, before a decision; traffic as after a rollback."""
    REPORTED = "reported"
    """A shadow without promotion ended with its report."""
    SUPERSEDED = "superseded"
    """Another apply, rollout or undo replaced it."""

    @property
    def is_over(self) -> bool:
        """Whether only a manual command can change it."""
        return self not in {
            RolloutPhase.PREPARING,
            RolloutPhase.PROGRESSING,
            RolloutPhase.PAUSED,
            RolloutPhase.KEEPING,
        }

    @property
    def is_reverted(self) -> bool:
        """Whether it ended with the old version."""
        return self in {RolloutPhase.ROLLED_BACK, RolloutPhase.ABORTED, RolloutPhase.REPORTED}


class PromotedBy(StrEnum):
    """What decided that the candidate takes all requests."""

    PLAN = "plan"
    """All steps completed; a `roll_back` verdict still takes precedence."""
    TIME = "time"
    """Timeout with `on_timeout`; a `roll_back` verdict still takes precedence."""
    HAND = "hand"
    """A manual command; metrics no longer count."""


class DecidedBy(StrEnum):
    """Cause of the decision that ended a rollout."""

    VERDICT = "verdict"
    """A metric that was shown to be worse than tolerated."""
    REPLICAS = "replicas"
    """The candidate's replicas were not ready in time, or cannot run."""
    PLAN = "plan"
    """All stages completed, with a verdict where required."""
    TIME = "time"
    """Timeout with `on_timeout`, once `max_duration_s` was over."""
    HAND = "hand"


class Verb(StrEnum):
    """A manual command to a rollout, valid at any time."""

    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"


class TrafficShares(msgspec.Struct, frozen=True, kw_only=True):
    """Traffic weights; `stable` is the remainder of 100."""

    candidate: int = 0
    baseline: int = 0
    mirror_percent: int = 0
    candidate_scale: float = 1.0
    """Part (0 to 1) of its replicas that the candidate needs; 0 for none."""

    has_baseline: bool = False

    has_stable: bool = True
    """Whether the old version's replicas are kept."""

    @property
    def stable(self) -> int:
        """Return the old version's weight."""
        return 100 - self.candidate - self.baseline

    @property
    def share(self) -> float:
        """Return the candidate's share of the requests to the two compared versions, 0 to 1."""
        other = self.baseline if self.has_baseline else self.stable
        return self.candidate / max(self.candidate + other, 1)


class RolloutState(msgspec.Struct, frozen=True, kw_only=True):
    """Persistent state of a rollout.

    Times are seconds of `elapsed_s`, which a monotonic clock counts while control planes observe
    the rollout, except `began` and `since`, which are seconds since 1970 and only for display.
    """

    settings: RolloutSpec
    phase: RolloutPhase
    began: float
    """Start of the rollout, in seconds since 1970."""

    since: float
    """Start of `phase`, in seconds since 1970."""
    elapsed_s: float = -1.0
    """Observed time; below 0 if stored by a release whose times were all seconds since 1970."""
    entered_at: float = 0.0
    """Start of `phase`."""

    step: int = 0
    """Canary step, from 0."""

    step_since: float | None = None
    """Time when the step's weight came into force; None until then."""

    resumes_at_phase: RolloutPhase | None = None
    """Phase after a pause."""

    reason: str = ""
    """Reason of the phase."""

    verdict: RolloutVerdict | None = None
    """The newest verdict."""

    traffic: TrafficShares = TrafficShares()

    aimed_at: float | None = None
    """Time when `traffic` or `step` last changed; None at the beginning."""

    counted_since: float | None = None
    """Start of `max_duration_s`; None until the candidate first got requests."""

    promoted_by: PromotedBy | None = None
    """Set while the candidate takes over, until its replicas and the gateway are ready."""

    awaits_approval: bool = False
    """Whether the plan paused it, not a command, so `resume` passes the step."""

    dropped_stable: bool = False
    """Whether the old version's replicas were stopped, so a rollback must start them first."""

    decided_by: DecidedBy | None = None
    """Cause of the last promotion or rollback; None before."""

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
    """Observations of the driver."""

    now: float
    """Seconds of `RolloutState.elapsed_s`."""

    candidate_ready: bool = False
    """Whether all replicas of `traffic` are ready."""

    candidate_failed: str = ""
    """Reason why the candidate cannot become ready; empty while it may."""

    in_force: bool = False
    """Whether the gateway acknowledged `traffic`."""

    verdict: RolloutVerdict | None = None

    judged_at: float = 0.0
    """Time when `verdict` was read."""

    step_samples: int = 0
    """Requests per arm since the step's weight came into force, the smaller number."""

    insufficient_traffic: str = ""
    """Reason why there are too few requests for a decision in time, with the remedy; empty
    otherwise."""
